package wal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"maps"
	"runtime"
	"testing"
)

// FuzzOpen reads directories of arbitrary bytes. With mend set, checksums are put
// right where there is something that looks like one, so that what lies behind them
// is reached, too.
func FuzzOpen(f *testing.F) {
	first, snap, second := seedFiles(f)
	sound := marker{boot: "start 0"}.append(nil)
	f.Add(first, snap, second, sound, false)
	f.Add(first, []byte(nil), second, marker{policy: SyncAlways, closed: true}.append(nil), true)
	f.Add(first[:len(first)-3], snap[:len(snap)-3], append(second, make([]byte, 30)...), sound[:20], false)
	f.Add([]byte("foreign"), second, snap, []byte("foreign"), true)
	f.Add([]byte(nil), []byte(nil), []byte(nil), []byte(nil), false)
	f.Fuzz(func(t *testing.T, first, snap, second, trusted []byte, mend bool) {
		files := map[string][]byte{
			fileID{id: 1}.name():                 first,
			fileID{id: 2, snapshot: true}.name(): snap,
			fileID{id: 3}.name():                 second,
		}
		size := 0
		for name, data := range files {
			if mend {
				files[name] = mended(data)
			}
			size += len(data)
		}
		if mend && len(trusted) >= markerHead {
			trusted = putSum(bytes.Clone(trusted))
		}
		files[markerName] = trusted
		size += len(trusted)
		fs := holding(files)
		var newer *Newer
		if _, err := replay(fs); errors.As(err, &newer) {
			return // of a version to come, and its checksum is right
		}

		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		got, report := contentsOf(t, fs)
		runtime.ReadMemStats(&after)
		if used := after.TotalAlloc - before.TotalAlloc; used > uint64(2<<20+200*size) {
			t.Fatalf("%d bytes of files took %d bytes of memory", size, used)
		}

		for key, payload := range got {
			if !hasPut(files, key, payload) {
				t.Fatalf("loaded %q=%q, which was never written", key, payload)
			}
		}
		m, wrong := parseMarker(trusted)
		if sound := wrong == "" && !m.outlived(fs.boot()) && len(report.Damage) == 0; sound != (report.Doubt == "") {
			t.Fatalf("marker %+v, %q: %v", m, wrong, report)
		}
		for _, d := range report.Damage {
			if data, ok := files[d.File]; ok && !bytes.Equal(fs.contents()[d.SetAside], data) {
				t.Fatalf("the damaged file was not kept: %v", d)
			}
		}
		again, next := contentsOf(t, fs)
		if !maps.Equal(got, again) || len(next.Damage) > 0 {
			t.Fatalf("loaded %s, then %s: %v", brief(got), brief(again), next)
		}
		// A Close between the two does not settle it, unless nothing was ever there.
		if report.Doubt != "" && next.Doubt == "" && next.Files > 0 {
			t.Fatalf("in doubt, and then no more: %v, then %v", report, next)
		}
	})
}

func seedFiles(f *testing.F) (first, snap, second []byte) {
	fs := newMemFS()
	l, _, _ := mustOpen(f, fs, Options{})
	mustPut(f, l, "a", 1, "1")
	mustPut(f, l, "b", 1, "2")
	mustDrop(f, l, "b", 2)
	first = fs.contents()[fileID{id: 1}.name()]
	if err := l.Compact(all(map[string]string{"a": "1", "c": "3"}, 1)); err != nil {
		f.Fatal(err)
	}
	mustPut(f, l, "a", 3, "4")
	mustDrop(f, l, "c", 3)
	mustClose(f, l)
	files := fs.contents()
	return first, files[fileID{id: 2, snapshot: true}.name()], files[fileID{id: 3}.name()]
}

// mended puts the checksums right along the lengths.
func mended(data []byte) []byte {
	data = bytes.Clone(data)
	if len(data) < headerSize {
		return data
	}
	binary.LittleEndian.PutUint32(data[12:], headerSum(data))
	for at := headerSize; len(data)-at >= recordHead; {
		length := int(binary.LittleEndian.Uint32(data[at:]))
		if length > len(data)-at-recordHead {
			break
		}
		binary.LittleEndian.PutUint32(data[at+4:], sumBytes(data[at+recordHead:at+recordHead+length]))
		at += recordHead + length
	}
	return data
}

// hasPut says whether any file has a sound put of the key and the payload, found
// without the code that is tested.
func hasPut(files map[string][]byte, key, payload string) bool {
	body := make([]byte, 0, bodyHead+len(key)+len(payload))
	body = append(body, byte(putRecord), 0, 0, 0, 0, 0, 0, 0, 0)
	body = binary.LittleEndian.AppendUint32(body, uint32(len(key)))
	body = append(append(body, key...), payload...)
	for _, data := range files {
		for at := headerSize; len(data)-at >= recordHead+len(body); at++ {
			rec := data[at:]
			copy(body[1:9], rec[recordHead+1:]) // whatever its number
			if int(binary.LittleEndian.Uint32(rec)) == len(body) &&
				bytes.Equal(rec[recordHead:recordHead+len(body)], body) &&
				binary.LittleEndian.Uint32(rec[4:]) == sumBytes(body) {
				return true
			}
		}
	}
	return false
}
