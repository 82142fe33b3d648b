module github.com/holdfast-cache/holdfast/bench

go 1.25.0

replace github.com/holdfast-cache/holdfast => ../

require (
	github.com/holdfast-cache/holdfast v0.0.0-00010101000000-000000000000
	github.com/redis/rueidis v1.0.79
	github.com/viccon/sturdyc v1.1.5
	golang.org/x/sync v0.20.0
)

require (
	github.com/cespare/xxhash/v2 v2.3.0 // indirect
	github.com/dgraph-io/ristretto/v2 v2.4.2 // indirect
	github.com/dustin/go-humanize v1.0.1 // indirect
	github.com/sony/gobreaker/v2 v2.4.0 // indirect
	golang.org/x/sys v0.47.0 // indirect
)
