// Package views makes a holdfast.Cache satisfy the interfaces that other libraries
// require of their stores, so that a program that uses such a library need not be
// changed. A view imports only the standard library and holdfast: it satisfies the
// interface structurally.
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
// HTTPCache also satisfies the interface of willnorris.com/go/imageproxy, and LocalCache
// that of the local tier of github.com/mgtv-tech/jetcache-go.
//
// # Keys
//
// Each view puts its prefix before each key, so that several views and the program itself
// can share one Cache and one Redis. Give each view a prefix of its own. This matters
// most if the key does not come from the program: a session token comes with the request,
// and without a prefix it could name any key in Redis.
//
// # TTLs
//
// If the interface has a TTL, the view uses it, and a TTL that has passed deletes the
// key. Otherwise the view's constructor takes one: 0 means Options.DefaultTTL. With a
// negative one nothing is stored, and OnError gets an error each time.
//
// # Values
//
// The caller may modify the bytes that a view returns, unlike those of the Cache. A view
// copies the bytes that it is given.
//
// # Outages
//
// A view waits as long as the Cache does: for at most Options.Timeout, and not at all
// while Redis is away. During an outage a read is answered from the memory of this
// process and is otherwise a miss, which sends the library to its source of truth; a
// write goes to the journal and is no error. For two views an outage must not look like a
// miss: Autocert and Watermill return holdfast.ErrUnavailable. The doc of each view
// describes the consequences for its library.
//
// # Lifetime
//
// A view is safe for concurrent use, as the Cache is, and needs no closing. Once the
// Cache is closed, the view returns holdfast.ErrClosed or, if the method has no error
// result, treats it like any other error.
package views
