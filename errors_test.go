package holdfast

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"
	"testing"
	"unicode/utf8"

	"github.com/alicebob/miniredis/v2"
	"github.com/holdfast-cache/holdfast/internal/link"
	"github.com/redis/rueidis"
)

// redisError returns the error that rueidis makes of an error reply.
func redisError(t *testing.T, text string) error {
	m := miniredis.RunT(t)
	client, err := rueidis.NewClient(rueidis.ClientOption{
		InitAddress: []string{m.Addr()}, ForceSingleClient: true, DisableCache: true, DisableRetry: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	m.SetError(text)
	err = client.Do(context.Background(), client.B().Get().Key("k").Build()).Error()
	if re, ok := rueidis.IsRedisErr(err); !ok || re.Error() != text {
		t.Fatalf("the server said %q and rueidis %v", text, err)
	}
	return err
}

func TestAnErrorTellsOperationAndKeyAndWrapsItsCause(t *testing.T) {
	readonly := redisError(t, "READONLY You can't write against a read only replica.")
	for _, tt := range []struct {
		err  *Error
		want string
		is   error
	}{
		{&Error{Op: "get", Key: "k", Tier: Remote, Err: ErrMiss}, "holdfast: get k: miss: ask the source of truth", ErrMiss},
		{&Error{Op: "delete", Err: context.Canceled}, "holdfast: delete: context canceled", context.Canceled},
		{&Error{Op: "set", Key: "k", Err: ErrInvalidTTL}, "holdfast: set k: invalid ttl: it must be zero or positive", ErrInvalidTTL},
		{&Error{Op: "set", Key: "k", Tier: Remote, Err: readonly}, "holdfast: set k: READONLY You can't write against a read only replica.", readonly},
		{
			&Error{Op: "add", Key: "k", Tier: Remote, Err: link.Unavailable{Cause: link.ErrBudget}},
			"holdfast: add k: " + strings.TrimPrefix(ErrUnavailable.Error(), "holdfast: ") + ": " + link.ErrBudget.Error(),
			ErrUnavailable,
		},
	} {
		if got := tt.err.Error(); got != tt.want {
			t.Errorf("text %q, want %q", got, tt.want)
		}
		if errors.Unwrap(error(tt.err)) != tt.err.Err {
			t.Errorf("%v unwraps to %v", tt.err, errors.Unwrap(error(tt.err)))
		}
		far := fmt.Errorf("caller: %w", errors.Join(io.EOF, tt.err))
		if !errors.Is(far, tt.is) {
			t.Errorf("%v is not %v", far, tt.is)
		}
		if errors.Is(tt.err, ErrClosed) {
			t.Errorf("%v is ErrClosed", tt.err)
		}
		if e := (*Error)(nil); !errors.As(far, &e) || e != tt.err {
			t.Errorf("%v holds no *Error", far)
		}
	}
	var re *rueidis.RedisError
	if err := error(&Error{Op: "set", Err: readonly}); !errors.As(err, &re) {
		t.Errorf("%v hides redis' own error", err)
	}
}

func TestALongOrBinaryKeyIsShownShortAndAsValidText(t *testing.T) {
	for _, tt := range []struct {
		name, key string
		shows     string // some of the key that must be there
	}{
		{"short", "user:1", "user:1"},
		{"64 bytes", strings.Repeat("a", 64), strings.Repeat("a", 64)},
		{"binary", "a\xff\xfe\x00b", "a"},
		{"all bad bytes", strings.Repeat("\xff", 200), ""},
		{"1 MiB", strings.Repeat("a", 1<<20), strings.Repeat("a", 64) + "..."},
		{"1 MiB, binary", strings.Repeat("\x80z", 1<<19), "z"},
		{"a letter cut in half", strings.Repeat("a", 63) + "é" + strings.Repeat("b", 100), strings.Repeat("a", 63)},
		{"letters of four bytes", "a" + strings.Repeat("😀", 1<<18), "😀😀"},
	} {
		text := (&Error{Op: "get", Key: tt.key, Err: ErrMiss}).Error()
		if !utf8.ValidString(text) {
			t.Errorf("%s: %q is not valid UTF-8", tt.name, text)
		}
		if len(text) > 200 {
			t.Errorf("%s: the text has %d bytes", tt.name, len(text))
		}
		if !strings.Contains(text, tt.shows) || !strings.HasPrefix(text, "holdfast: get ") || !strings.HasSuffix(text, ": miss: ask the source of truth") {
			t.Errorf("%s: %q", tt.name, text)
		}
		if len(tt.key) > 64 && !strings.Contains(text, "...") {
			t.Errorf("%s: %q does not say that the key goes on", tt.name, text)
		}
	}
}

func TestUnavailableNamesItsCauseAndIsErrUnavailable(t *testing.T) {
	cause := fmt.Errorf("dial: %w", syscall.ECONNREFUSED)
	err := error(link.Unavailable{Cause: cause})
	if !errors.Is(err, ErrUnavailable) || !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("%v is not ErrUnavailable with its cause", err)
	}
	if errors.Is(err, ErrMiss) || errors.Is(err, ErrClosed) {
		t.Errorf("%v is everything", err)
	}
	if text := err.Error(); !strings.HasPrefix(text, ErrUnavailable.Error()) || !strings.HasSuffix(text, cause.Error()) {
		t.Errorf("text %q", text)
	}
	if !errors.Is(&Error{Op: "add", Key: "k", Err: err}, ErrUnavailable) {
		t.Error("lost within an *Error")
	}
}
