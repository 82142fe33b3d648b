module github.com/holdfast-cache/holdfast/compat

go 1.25.0

require (
	github.com/holdfast-cache/holdfast v0.0.0
	github.com/redis/rueidis v1.0.79
	github.com/redis/rueidis/rueidiscompat v1.0.78
)

require (
	github.com/cespare/xxhash/v2 v2.3.0 // indirect
	github.com/dgraph-io/ristretto/v2 v2.4.2 // indirect
	github.com/dustin/go-humanize v1.0.1 // indirect
	github.com/sony/gobreaker/v2 v2.4.0 // indirect
	golang.org/x/sys v0.47.0 // indirect
)

replace github.com/holdfast-cache/holdfast => ../
