module github.com/holdfast-cache/holdfast/compress

go 1.25.0

replace github.com/holdfast-cache/holdfast => ../

require (
	github.com/holdfast-cache/holdfast v0.0.0-00010101000000-000000000000
	github.com/klauspost/compress v1.20.3
)

require (
	github.com/cespare/xxhash/v2 v2.3.0 // indirect
	github.com/dgraph-io/ristretto/v2 v2.4.2 // indirect
	github.com/dustin/go-humanize v1.0.1 // indirect
	github.com/redis/rueidis v1.0.79 // indirect
	github.com/sony/gobreaker/v2 v2.4.0 // indirect
	golang.org/x/sys v0.47.0 // indirect
)
