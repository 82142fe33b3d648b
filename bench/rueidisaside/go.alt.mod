module github.com/holdfast-cache/holdfast/bench

go 1.25.0

require github.com/redis/rueidis v1.0.25
