package redistest

import (
	"bufio"
	"io"
	"strings"
	"testing"
	"time"
)

func TestSentinelWithPasswordsOfItsOwnFailsOver(t *testing.T) {
	r := StartSentinelWith(t, SentinelOptions{Replicas: 1, Password: "servers", SentinelPassword: "sentinels"})
	for _, s := range append(r.Servers(), r.Sentinels()...) {
		if _, err := Do(s.Addr(), "CLIENT", "LIST"); err == nil || !strings.HasPrefix(err.Error(), "NOAUTH") {
			t.Errorf("%s without a password: %v", s.Addr(), err)
		}
	}
	first := r.Master()
	first.MustDo("SET", "k", "v")
	first.AwaitReplicas(1)
	r.Sentinels()[0].MustDo("SENTINEL", "FAILOVER", MasterSet)
	WaitFor(t, time.Minute, "a new master", func() bool { return r.Master() != first })
	if got := r.Master().MustDo("GET", "k"); got != "v" {
		t.Errorf("the new master has %q", got)
	}
}

func TestSentinelGivesUpAMasterBehindItsProxyThatStillLives(t *testing.T) {
	r := StartSentinelWith(t, SentinelOptions{Replicas: 1, MasterProxy: true})
	first := r.Master()
	if first != r.Servers()[0] {
		t.Fatalf("the master is %s", first.Addr())
	}
	r.MasterProxy().SetMode(Cut)
	WaitFor(t, time.Minute, "a new master", func() bool { return r.Master() != first })
	if got := first.MustDo("ROLE"); !strings.HasPrefix(got, "master") {
		t.Errorf("the old master was told although nobody reaches it: %q", got)
	}
	r.MasterProxy().SetMode(Pass)
	WaitFor(t, time.Minute, "the old master to be told", func() bool { return strings.HasPrefix(first.MustDo("ROLE"), "slave") })
}

func TestSentinelTellsTheNameOfTheHost(t *testing.T) {
	r := StartSentinelWith(t, SentinelOptions{Hostnames: true})
	got := r.Sentinels()[0].MustDo("SENTINEL", "GET-MASTER-ADDR-BY-NAME", MasterSet)
	if !strings.HasPrefix(got, "localhost\n") || r.Master() != r.Servers()[0] {
		t.Errorf("the sentinel says %q", got)
	}
}

func TestRespondAnswersEachCommandAsItIsTold(t *testing.T) {
	l := Respond(t, func(conn int, command []string) (string, bool) {
		switch command[0] {
		case "MUTE":
			return "", true
		case "QUIT":
			return "+bye\r\n", false
		}
		return "+" + strings.Join(command, " ") + "\r\n", conn == 0
	})
	c := dialTo(t, l.Addr())
	send(t, c, "*1\r\n$4\r\nMUTE\r\n*2\r\n$4\r\nECHO\r\n$1\r\na\r\n*1\r\n$4\r\nQUIT")
	r := bufio.NewReader(c)
	wantLine(t, r, "+ECHO a")
	wantLine(t, r, "+bye")
	if _, err := r.ReadByte(); err != io.EOF {
		t.Errorf("behind the end: %v", err)
	}
	if l.Accepted() != 1 {
		t.Errorf("%d connections", l.Accepted())
	}
}
