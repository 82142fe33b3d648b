package conformance

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/goredis"
	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/redis/go-redis/v9"
	"github.com/redis/rueidis"
)

func rueidisBefore(ctx context.Context, addr string, db *users) (User, error) {
	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{addr}})
	if err != nil {
		return User{}, err // also where Redis is not there
	}
	defer client.Close()
	return byRueidis(ctx, client, db)
}

func rueidisAfter(ctx context.Context, addr string, db *users) (User, error) {
	cache, err := holdfast.New(holdfast.Options{
		Redis:  rueidis.ClientOption{InitAddress: []string{addr}},
		Logger: slog.Default(),
	})
	if err != nil {
		return User{}, err // the options contradict each other; never the network
	}
	defer shutdown(cache)
	client := cache.Client()
	return byRueidis(ctx, client, db)
}

func byRueidis(ctx context.Context, client rueidis.Client, db *users) (User, error) {
	name, err := client.DoCache(ctx, client.B().Get().Key("user:7").Cache(), time.Minute).ToString()
	if rueidis.IsRedisNil(err) {
		user, err := db.user(ctx, "7")
		if err == nil {
			err = client.Do(ctx, client.B().Set().Key("user:7").Value(user.Name).Ex(time.Hour).Build()).Error()
		}
		return user, err
	}
	return User{name}, err
}

func retry(ctx context.Context, cache *holdfast.Cache) (mine bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	err = cache.Retry(ctx, func(ctx context.Context) error {
		mine, err = cache.Add(ctx, "lock:report", []byte("worker-1"), time.Minute)
		return err
	})
	return mine, err
}

func goRedisBefore(ctx context.Context, addr string, db *users) (User, error) {
	rdb := redis.NewClient(&redis.Options{Addr: addr})
	defer rdb.Close()
	return byGoRedis(ctx, rdb, db)
}

func goRedisAfter(ctx context.Context, addr string, db *users) (User, error) {
	rdb := redis.NewClient(&redis.Options{Addr: addr})
	defer rdb.Close()
	cache, err := holdfast.New(holdfast.Options{
		Redis:  rueidis.ClientOption{InitAddress: []string{addr}},
		Logger: slog.Default(),
	})
	if err != nil {
		return User{}, err // the options contradict each other; never the network
	}
	defer shutdown(cache)
	if err := goredis.Attach(rdb, cache); err != nil {
		return User{}, err // the two would not go to the same Redis
	}
	return byGoRedis(ctx, rdb, db)
}

func byGoRedis(ctx context.Context, rdb *redis.Client, db *users) (User, error) {
	name, err := rdb.Get(ctx, "user:7").Result()
	if errors.Is(err, redis.Nil) {
		user, err := db.user(ctx, "7")
		if err == nil {
			err = rdb.Set(ctx, "user:7", user.Name, time.Hour).Err()
		}
		return user, err
	}
	return User{name}, err
}

func TestWhatTheMigrationPageShowsOfClientsWorks(t *testing.T) {
	for name, run := range map[string]program{
		"rueidisBefore": rueidisBefore,
		"rueidisAfter":  rueidisAfter,
		"goRedisBefore": goRedisBefore,
		"goRedisAfter":  goRedisAfter,
	} {
		t.Run(name, func(t *testing.T) { worksAndGoesOn(t, run, strings.HasSuffix(name, "Before")) })
	}
}

func TestALockOfThePageIsTakenByRetry(t *testing.T) {
	cache, err := holdfast.Open("redis://" + redistest.Start(t).Addr())
	must(t, err)
	defer cache.Close()
	if mine, err := retry(context.Background(), cache); !mine || err != nil {
		t.Errorf("%v, %v", mine, err)
	}
}
