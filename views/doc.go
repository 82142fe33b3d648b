// Package views has a holdfast.Cache satisfy the interfaces that other libraries
// ask of their stores, so that a program which uses one of them need not be changed.
// A view imports nothing but the standard library and holdfast: it fits by its methods
// alone.
//
//	View        for                                     a miss is
//	Fiber       github.com/gofiber/fiber v2 and v3      nil, nil
//	SCS         github.com/alexedwards/scs/v2           found == false
//	HTTPCache   github.com/gregjones/httpcache          ok == false
//	Autocert    golang.org/x/crypto/acme/autocert       autocert.ErrCacheMiss
//	Sturdyc     github.com/viccon/sturdyc               ok == false; absent from a batch
//	LocalCache  github.com/go-redis/cache               ok == false
//	GQLGen      github.com/99designs/gqlgen             ok == false
//	Watermill   github.com/ThreeDotsLabs/watermill      not a duplicate
//
// HTTPCache is also what willnorris.com/go/imageproxy takes, and LocalCache what
// github.com/mgtv-tech/jetcache-go takes for its local tier.
//
// # Keys
//
// Each view puts its prefix before each key, so that several views and the program
// itself can share one Cache and one Redis. Give each a prefix of its own. It matters
// most where the key is not the program's: a session token comes with the request,
// and without a prefix it may name any key there is.
//
// # TTLs
//
// Where the interface has a TTL, it is kept, and one that has passed deletes. Where it
// has none, the view is given one: 0 is Options.DefaultTTL, and with a negative one
// nothing is stored, which OnError is told each time.
//
// # Values
//
// The bytes that a view returns are the caller's own, unlike those of the Cache. Those
// that it is given are copied.
//
// # Outages
//
// A view waits as the Cache does: for at most Options.Timeout, and for nothing while
// Redis is away. Then a read is answered by what this process knows, and is otherwise
// a miss, which sends the library to its source of truth; a write is kept in the
// journal and is no error. Two views say so where the outage must not look like a
// miss: Autocert and Watermill return holdfast.ErrUnavailable. What this means for
// the library is said of each view.
//
// # Lifetime
//
// A view is safe for concurrent use, as the Cache is, and needs no closing. Once the
// Cache is closed it answers with holdfast.ErrClosed, or as it does on any other error.
package views
