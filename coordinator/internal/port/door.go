package port

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"sync"
)

// door is the listener of one protocol.
type door struct {
	addr net.Addr
	// port is closed with the whole port.
	port <-chan struct{}
	// conns has no room of its own, so that a connection is never left behind in a closed door.
	conns chan *tls.Conn
	// closed is closed by Close.
	closed chan struct{}
	once   sync.Once
}

// Accept returns the next connection, a *tls.Conn whose handshake is done.
func (d *door) Accept() (net.Conn, error) {
	select {
	case c := <-d.conns:
		return c, nil
	case <-d.closed:
	case <-d.port:
	}
	return nil, &net.OpError{Op: "accept", Net: d.addr.Network(), Addr: d.addr, Err: net.ErrClosed}
}

// Close closes this door only: later connections of its protocol are refused, those handed out stay.
func (d *door) Close() error {
	d.once.Do(func() { close(d.closed) })
	return nil
}

// Addr is the address of the port.
func (d *door) Addr() net.Addr { return d.addr }

// give waits for somebody to accept c.
func (d *door) give(ctx context.Context, c *tls.Conn) error {
	select {
	case d.conns <- c:
		return nil
	case <-d.closed:
	case <-d.port:
	case <-ctx.Done():
		return fmt.Errorf("nobody accepts connections of protocol %s: %w", c.ConnectionState().NegotiatedProtocol, context.Cause(ctx))
	}
	return net.ErrClosed
}
