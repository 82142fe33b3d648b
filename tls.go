package holdfast

import (
	"crypto/tls"
	"crypto/x509"
	"net"

	"github.com/redis/rueidis"
)

// nodeTLS is the user's TLS configuration as it is for one address. rueidis.ParseURL
// sets ServerName to the host of the URL, the first of the addresses; to another
// address with another host, which a server named or the URL, the connection is for that
// host. Its certificate may be for either: nodes that a cluster names by their numbers
// often have one for the name under which they were found.
func nodeTLS(o rueidis.ClientOption, addr string) *tls.Config {
	cfg := o.TLSConfig
	if cfg == nil || cfg.ServerName == "" || len(o.InitAddress) == 0 || cfg.ServerName != hostOf(o.InitAddress[0]) {
		return cfg
	}
	host := hostOf(addr)
	if host == cfg.ServerName {
		return cfg
	}
	either := cfg.Clone()
	if net.ParseIP(host) == nil {
		either.ServerName = host // what is asked for, too; there is no asking for a number
	}
	if cfg.InsecureSkipVerify || cfg.VerifyConnection != nil || cfg.VerifyPeerCertificate != nil || o.DialCtxFn != nil {
		return either // the user verifies, or may want to
	}
	either.InsecureSkipVerify = true // verified here instead
	either.VerifyConnection = func(state tls.ConnectionState) error { return verify(cfg, state, host, cfg.ServerName) }
	return either
}

// verify is crypto/tls' own verification, for one of several names.
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
