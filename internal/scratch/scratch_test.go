package scratch

import "testing"

func TestASliceOfABatchKeepsNoValueAlive(t *testing.T) {
	var s Slices[*int]
	for _, n := range []int{1, leastCap, 100, 20, mostCap, mostCap + 1} {
		got := s.Get(n)
		if len(got) != 0 || cap(got) < n {
			t.Fatalf("for %d elements a slice of length %d and capacity %d", n, len(got), cap(got))
		}
		for i, p := range got[:cap(got)] {
			if p != nil {
				t.Fatalf("element %d of %d was kept", i, n)
			}
		}
		for range n {
			got = append(got, &n)
		}
		s.Put(got)
	}
	for range 100 { // the race detector makes a pool drop some of what it gets
		s.Put(s.Get(mostCap + 1))
		if got := s.Get(leastCap); cap(got) > mostCap {
			t.Fatalf("a slice of capacity %d was kept", cap(got))
		}
	}
}
