package wal

// pausing is a fileSystem that calls Options.Before before each access to the disk.
type pausing struct {
	fileSystem
	before func(op string)
}

func (p pausing) create(name string) (writeFile, error) {
	p.before("create")
	f, err := p.fileSystem.create(name)
	if err != nil {
		return nil, err
	}
	return pausingFile{f, p.before}, nil
}

func (p pausing) rename(from, to string) error {
	p.before("rename")
	return p.fileSystem.rename(from, to)
}

func (p pausing) remove(name string) error {
	p.before("remove")
	return p.fileSystem.remove(name)
}

func (p pausing) sync(name string) error {
	p.before("sync")
	return p.fileSystem.sync(name)
}

func (p pausing) empty(name string) error {
	p.before("truncate")
	return p.fileSystem.empty(name)
}

func (p pausing) syncDir() error {
	p.before("syncdir")
	return p.fileSystem.syncDir()
}

func (p pausing) exists(name string) bool {
	p.before("stat")
	return p.fileSystem.exists(name)
}

func (p pausing) size(name string, held writeFile) (int64, error) {
	p.before("stat")
	if f, ok := held.(pausingFile); ok {
		held = f.writeFile
	}
	return p.fileSystem.size(name, held)
}

type pausingFile struct {
	writeFile
	before func(op string)
}

func (f pausingFile) Write(b []byte) (int, error) {
	f.before("write")
	return f.writeFile.Write(b)
}

func (f pausingFile) Sync() error {
	f.before("sync")
	return f.writeFile.Sync()
}

func (f pausingFile) Truncate(size int64) error {
	f.before("truncate")
	return f.writeFile.Truncate(size)
}
