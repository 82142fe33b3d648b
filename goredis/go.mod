module github.com/holdfast-cache/holdfast/goredis

go 1.25.0

replace github.com/holdfast-cache/holdfast => ../

require (
	github.com/holdfast-cache/holdfast v0.0.0
	github.com/redis/go-redis/v9 v9.9.0
	github.com/redis/rueidis v1.0.79
	go.uber.org/goleak v1.3.0
)

require (
	github.com/cespare/xxhash/v2 v2.3.0 // indirect
	github.com/dgraph-io/ristretto/v2 v2.4.2 // indirect
	github.com/dgryski/go-rendezvous v0.0.0-20200823014737-9f7001d12a5f // indirect
	github.com/dustin/go-humanize v1.0.1 // indirect
	github.com/sony/gobreaker/v2 v2.4.0 // indirect
	golang.org/x/sys v0.47.0 // indirect
)
