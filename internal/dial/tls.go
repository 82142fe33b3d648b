package dial

import (
	"crypto/tls"
	"crypto/x509"
	"net"

	"github.com/redis/rueidis"
)

// nodeTLS returns the user's TLS configuration adapted to one address. rueidis.ParseURL sets
// ServerName to the host of the URL, which is that of the first address. For an address with
// another host, from the URL or from a server, ServerName becomes that host, unless it is an IP
// address. The certificate may be for either name: nodes that a cluster names by IP address often
// have a certificate for the name under which they were found.
func nodeTLS(o rueidis.ClientOption, addr string) *tls.Config {
	cfg := o.TLSConfig
	if cfg == nil || cfg.ServerName == "" || len(o.InitAddress) == 0 || cfg.ServerName != HostOf(o.InitAddress[0]) {
		return cfg
	}
	host := HostOf(addr)
	if host == cfg.ServerName {
		return cfg
	}
	either := cfg.Clone()
	if net.ParseIP(host) == nil {
		either.ServerName = host // SNI, too; SNI has no IP addresses
	}
	if cfg.InsecureSkipVerify || cfg.VerifyConnection != nil || cfg.VerifyPeerCertificate != nil || o.DialCtxFn != nil {
		return either // the user verifies, or may want to
	}
	either.InsecureSkipVerify = true // VerifyConnection verifies instead
	either.VerifyConnection = func(state tls.ConnectionState) error { return verify(cfg, state, host, cfg.ServerName) }
	return either
}

// verify does the verification of crypto/tls for one of several names.
func verify(cfg *tls.Config, state tls.ConnectionState, names ...string) (err error) {
	for _, name := range names {
		opts := x509.VerifyOptions{Roots: cfg.RootCAs, DNSName: name, Intermediates: x509.NewCertPool()}
		if cfg.Time != nil {
			opts.CurrentTime = cfg.Time()
		}
		for _, cert := range state.PeerCertificates[1:] {
			opts.Intermediates.AddCert(cert)
		}
		if _, bad := state.PeerCertificates[0].Verify(opts); bad == nil {
			return nil
		} else if err == nil {
			err = &tls.CertificateVerificationError{UnverifiedCertificates: state.PeerCertificates, Err: bad}
		}
	}
	return err
}

// HostOf returns the host of an address, or the address if it has no port.
func HostOf(addr string) string {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return addr
	}
	return host
}
