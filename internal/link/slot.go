package link

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/holdfast-cache/holdfast/internal/rediserr"
	"github.com/redis/rueidis"
)

// slotCount is the number of hash slots of a cluster.
const slotCount = 16384

// mostNodes bounds the number of links. Redis does not support larger clusters.
const mostNodes = 1024

// SlotOf returns the hash slot of a key. If there is text between the first opening brace and the
// next closing one, only that text is hashed.
func SlotOf(key string) int {
	if _, rest, ok := strings.Cut(key, "{"); ok {
		if tag, _, ok := strings.Cut(rest, "}"); ok && tag != "" {
			key = tag
		}
	}
	var crc uint16
	for i := range len(key) {
		crc = crc<<8 ^ crcTable[byte(crc>>8)^key[i]]
	}
	return int(crc) % slotCount
}

// crcTable is the table of CRC-16/XMODEM.
var crcTable = func() (t [256]uint16) {
	for i := range t {
		crc := uint16(i) << 8
		for range 8 {
			if crc&0x8000 != 0 {
				crc = crc<<1 ^ 0x1021
			} else {
				crc <<= 1
			}
		}
		t[i] = crc
	}
	return t
}()

// slotRange is one range of a cluster's map.
type slotRange struct {
	from, to int
	addr     string // of the master
}

var errBadMap = errors.New("holdfast: CLUSTER SLOTS makes no sense")

var errNoSlots = errors.New("holdfast: the cluster has not given out its slots yet")

// readSlots parses the reply of CLUSTER SLOTS. host is the host of the node that answered; it
// replaces an empty host in the reply.
func readSlots(reply rueidis.RedisResult, host string) ([]slotRange, error) {
	rows, err := reply.ToArray()
	if err != nil {
		return nil, err
	}
	var ranges []slotRange
	slots, nodes := 0, map[string]bool{}
	for _, line := range rows {
		r, err := readRange(line, host)
		if err != nil {
			return nil, err
		}
		if r.addr == "" {
			continue
		}
		// A slot has one master, and each master gets a link.
		slots += r.to - r.from + 1
		nodes[r.addr] = true
		if slots > slotCount || len(nodes) > mostNodes {
			return nil, errBadMap
		}
		ranges = append(ranges, r)
	}
	if len(ranges) == 0 {
		return nil, errNoSlots
	}
	return ranges, nil
}

func readRange(line rueidis.RedisMessage, host string) (r slotRange, err error) {
	bad := errBadMap
	fields, err := line.ToArray()
	if err != nil || len(fields) < 3 {
		return r, bad
	}
	from, err1 := fields[0].AsInt64()
	to, err2 := fields[1].AsInt64()
	master, err3 := fields[2].ToArray()
	if err := errors.Join(err1, err2, err3); err != nil || from < 0 || to >= slotCount || from > to || len(master) < 2 {
		return r, bad
	}
	port, err := master[1].AsInt64()
	if err != nil || port < 0 || port > 65535 {
		return r, bad
	}
	name, err := master[0].ToString()
	switch {
	case rueidis.IsRedisNil(err), err == nil && name == "":
		name = host
	case err != nil, !isHost(name):
		return r, bad
	case name == "?" || port == 0:
		return slotRange{}, nil // the node does not know its own name, or is gone
	}
	return slotRange{int(from), int(to), net.JoinHostPort(name, strconv.FormatInt(port, 10))}, nil
}

// redirection is a parsed MOVED or ASK.
type redirection struct {
	ask  bool
	slot int
	addr string
}

// readRedirection parses a text like "MOVED 3999 127.0.0.1:6381". host replaces an empty host in
// the text.
func readRedirection(text, host string) (r redirection, err error) {
	parts := strings.Fields(text)
	if len(parts) != 3 {
		return r, fmt.Errorf("holdfast: a redirection that makes no sense: %.80q", text)
	}
	r.ask = parts[0] == "ASK"
	r.slot, err = strconv.Atoi(parts[1])
	// The address of an IPv6 node has no brackets.
	colon := strings.LastIndexByte(parts[2], ':')
	if err != nil || r.slot < 0 || r.slot >= slotCount || colon < 0 || !isPort(parts[2][colon+1:]) {
		return r, fmt.Errorf("holdfast: a redirection that makes no sense: %.80q", text)
	}
	name := strings.Trim(parts[2][:colon], "[]")
	switch {
	case name == "":
		name = host
	case name == "?" || !isHost(name):
		return r, fmt.Errorf("holdfast: a redirection to a node without a name: %.80q", text)
	}
	r.addr = net.JoinHostPort(name, parts[2][colon+1:])
	return r, nil
}

// isHost reports whether s may be a name or an address. It only rejects text that is empty, longer
// than 255 bytes, or has spaces or unprintable characters: s appears in logs and errors.
func isHost(s string) bool {
	return s != "" && len(s) <= 255 && !strings.ContainsFunc(s, func(r rune) bool { return r == ' ' || rediserr.Unprintable(r) })
}

// isPort reports whether s is a port number. A dial would look up a service name.
func isPort(s string) bool {
	n, err := strconv.ParseUint(s, 10, 16)
	return err == nil && n > 0
}

// WithAsking puts ASKING before each command, because it holds for one command only.
func WithAsking(b rueidis.Builder, cmds []rueidis.Completed) []rueidis.Completed {
	all := make([]rueidis.Completed, 0, 2*len(cmds))
	for _, cmd := range cmds {
		all = append(all, b.Asking().Build(), cmd)
	}
	return all
}

func WithoutAsking(replies []rueidis.RedisResult) []rueidis.RedisResult {
	for i := range len(replies) / 2 {
		replies[i] = replies[2*i+1]
	}
	return replies[:len(replies)/2]
}
