package resp

// skip returns the end of the frame that begins at b[i], if it is one of the usual ones and nothing
// about it needs the states below, which take several times as long; else i.
func (f *Framer) skip(b []byte, i int) (end int) {
	if len(f.stack) > 0 || f.prefixed || f.ledger != nil || f.hold != none || f.begun >= f.allowed {
		return i
	}
	if f.requests {
		end = requestEnd(b, i)
	} else {
		end = shortReplyEnd(b, i)
	}
	if end <= i {
		return i
	}
	f.begun++
	f.replies++
	return end
}

// requestEnd returns the end of the request that begins at b[i], 0 if b does not have all of it.
func requestEnd(b []byte, i int) (end int) {
	n, at := header(b, i, '*')
	for range n {
		size, body := header(b, at, '$')
		at = body + size
		if body == 0 || at+1 >= len(b) || b[at] != '\r' || b[at+1] != '\n' {
			return 0
		}
		at += 2
	}
	if n == 0 {
		return 0
	}
	return at
}

// shortReplyEnd returns the end of the reply that begins at b[i], 0 if it is neither OK nor a number.
func shortReplyEnd(b []byte, i int) (end int) {
	const ok = "+OK\r\n"
	if len(b)-i >= len(ok) && string(b[i:i+len(ok)]) == ok {
		return i + len(ok)
	}
	_, end = header(b, i, ':')
	return end
}

// header reads a number of at most nine digits, between the type byte b[i] and a CRLF. end is 0 if it
// is not there.
func header(b []byte, i int, typ byte) (n, end int) {
	const longest = len(":123456789")
	if i >= len(b) || b[i] != typ {
		return 0, 0
	}
	for at := i + 1; at < len(b)-1 && at <= i+longest; at++ {
		c := b[at]
		switch {
		case c-'0' <= 9:
			n = n*10 + int(c-'0')
		case c == '\r' && b[at+1] == '\n' && at > i+1:
			return n, at + 2
		default:
			return 0, 0
		}
	}
	return 0, 0
}
