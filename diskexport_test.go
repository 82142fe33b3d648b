package holdfast

// HangDisk makes accesses of these kinds to the disk that has Journal.Dir stand still,
// all where none is named, until the function that it returns is called.
func HangDisk(c *Cache, kinds ...string) (goOn func()) { return c.journal.HangDisk(kinds...) }
