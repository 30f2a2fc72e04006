package gateway

import "context"

// Renew is one renewal, which Run makes at half of the certificate's life.
func (g *Gateway) Renew(ctx context.Context) error { return g.renew(ctx) }

// Certificate is the one in use.
func (g *Gateway) Certificate() []byte { return g.identity.current().cert.Certificate[0] }
