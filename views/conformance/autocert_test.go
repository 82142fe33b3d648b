package conformance

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/holdfast-cache/holdfast/views"
	"golang.org/x/crypto/acme"
	"golang.org/x/crypto/acme/autocert"
)

// certificate is a domain's key and certificate as autocert keeps them.
func certificate(t testing.TB, domain string) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		DNSNames:     []string{domain},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(90 * 24 * time.Hour),
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	must(t, err)
	der, err := x509.MarshalECPrivateKey(key)
	must(t, err)
	var b bytes.Buffer
	must(t, pem.Encode(&b, &pem.Block{Type: "EC PRIVATE KEY", Bytes: der}))
	must(t, pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: cert}))
	return b.Bytes()
}

func TestAutocertServesWhatItKnowsAndOrdersNothingInAnOutage(t *testing.T) {
	var orders counted
	authority := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		orders.ask()
		http.Error(w, "no more this week", http.StatusTooManyRequests)
	}))
	t.Cleanup(authority.Close)
	manager := func(c *holdfast.Cache) *autocert.Manager {
		return &autocert.Manager{
			Prompt: autocert.AcceptTOS,
			Cache:  views.NewAutocert(c, "cert:", autocert.ErrCacheMiss),
			// One attempt: it would retry for as long as a handshake may take.
			Client: &acme.Client{DirectoryURL: authority.URL, RetryBackoff: func(int, *http.Request, *http.Response) time.Duration { return -1 }},
		}
	}
	shake := func(m *autocert.Manager, domain string) error {
		t.Helper()
		cert, err := m.GetCertificate(&tls.ClientHelloInfo{
			ServerName: domain, CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256},
			SignatureSchemes: []tls.SignatureScheme{tls.ECDSAWithP256AndSHA256},
		})
		if err == nil {
			return cert.Leaf.VerifyHostname(domain)
		}
		return err
	}
	redis := redistest.Start(t)
	c := open(t, redis)
	must(t, manager(c).Cache.Put(context.Background(), "known.example.org", certificate(t, "known.example.org")))
	must(t, manager(open(t, redis)).Cache.Put(context.Background(), "unseen.example.org", certificate(t, "unseen.example.org")))
	must(t, shake(manager(c), "known.example.org"))

	kill(t, redis, c)
	must(t, shake(manager(c), "known.example.org")) // a manager that has it from the cache alone
	if err := shake(manager(c), "unseen.example.org"); !errors.Is(err, holdfast.ErrUnavailable) {
		t.Errorf("a domain of which only Redis knows: %v; want ErrUnavailable", err)
	}
	equal(t, "orders in the outage", orders.n.Load(), 0)

	restart(t, redis, c)
	if err := shake(manager(c), "new.example.org"); err == nil || orders.n.Load() == 0 {
		t.Errorf("a domain that nobody knows: %v, %d orders; want one that is refused", err, orders.n.Load())
	}
}
