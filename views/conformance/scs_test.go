package conformance

import (
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/alexedwards/scs/v2"
	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/holdfast-cache/holdfast/views"
)

// scsSite is one process' web server with sessions.
func scsSite(t testing.TB, c *holdfast.Cache) (url string) {
	sessions := scs.New()
	sessions.Store = views.NewSCS(c, "session:")
	mux := http.NewServeMux()
	mux.HandleFunc("/login", func(w http.ResponseWriter, r *http.Request) {
		must(t, sessions.RenewToken(r.Context()))
		sessions.Put(r.Context(), "user", r.FormValue("user"))
	})
	mux.HandleFunc("/me", func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, sessions.GetString(r.Context(), "user"))
	})
	mux.HandleFunc("/logout", func(w http.ResponseWriter, r *http.Request) {
		if err := sessions.Destroy(r.Context()); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	})
	server := httptest.NewServer(sessions.LoadAndSave(mux))
	t.Cleanup(server.Close)
	return server.URL
}

func TestSCSSessionsOutliveRedis(t *testing.T) {
	redis := redistest.Start(t)
	c, other := open(t, redis), open(t, redis)
	site := scsSite(t, c)
	ann := browser(t)
	visit := func(client *http.Client, url string) string {
		t.Helper()
		resp, err := client.Get(url)
		must(t, err)
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		must(t, err)
		equal(t, url, resp.StatusCode, http.StatusOK)
		return string(body)
	}
	visit(ann, site+"/login?user=ann")
	equal(t, "user", visit(ann, site+"/me"), "ann")
	// Cookies know no ports: the other process is the same site to the browser.
	equal(t, "user at the other process", visit(ann, scsSite(t, other)+"/me"), "ann")
	equal(t, "a stranger", visit(browser(t), site+"/me"), "")

	kill(t, redis, c)
	equal(t, "user in the outage", visit(ann, site+"/me"), "ann")
	equal(t, "a stranger in the outage", visit(browser(t), site+"/me"), "")
	bob := browser(t)
	visit(bob, site+"/login?user=bob")
	equal(t, "user who logged in meanwhile", visit(bob, site+"/me"), "bob")
	visit(ann, site+"/logout")
	equal(t, "user who logged out meanwhile", visit(ann, site+"/me"), "")

	restart(t, redis, c)
	equal(t, "user afterwards", visit(bob, site+"/me"), "bob")
	equal(t, "user afterwards at a new process", visit(bob, scsSite(t, open(t, redis))+"/me"), "bob")
	equal(t, "user who logged out", visit(ann, site+"/me"), "")
}
