// Package client reaches any of a cluster's coordinators: it tries the others when one is down, and repeats a call that may
// be repeated. What is called, and what an answer means, is the commands' concern.
package client

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"github.com/spheroseg/muster/internal/rpcerr"
)

const (
	connectTimeout = 2 * time.Second
	firstPause     = 100 * time.Millisecond
	longestPause   = time.Second
	maxAnswer      = 64 << 20
)

// Options of a Client.
type Options struct {
	// Addresses of coordinators, in the order in which they are tried. Required.
	Addresses []string
	// TLS of the connections. Required.
	TLS *tls.Config
	// Notify is told, once for each call, that every coordinator was tried in vain and the call goes on trying. May be nil.
	Notify func(why string)
}

// Client is a connection to whichever coordinator answers. It is a grpc.ClientConnInterface: generated clients use it as it
// is. It is safe for concurrent use.
type Client struct {
	options Options

	mu        sync.Mutex
	addresses []string
	current   int
	conns     []*grpc.ClientConn // one for each address; nil until it is needed.
}

// New returns a client. It connects with the first call.
func New(o Options) (*Client, error) {
	if len(o.Addresses) == 0 {
		return nil, errors.New("client: no coordinator's address is given")
	}
	if o.TLS == nil {
		return nil, errors.New("client: no TLS configuration is given")
	}
	for _, a := range o.Addresses {
		if _, _, err := net.SplitHostPort(a); err != nil {
			return nil, fmt.Errorf("coordinator %q is not HOST:PORT: %w", a, err)
		}
	}
	return &Client{options: o, addresses: slices.Clone(o.Addresses), conns: make([]*grpc.ClientConn, len(o.Addresses))}, nil
}

// Close ends all connections.
func (c *Client) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var errs []error
	for i, conn := range c.conns {
		if conn != nil {
			errs = append(errs, conn.Close())
			c.conns[i] = nil
		}
	}
	return errors.Join(errs...)
}

// Server returns the address of the coordinator that is asked next.
func (c *Client) Server() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.addresses[c.current]
}

// Add adds coordinators to those that are tried, after the ones that are known, and tells whether there were new ones.
func (c *Client) Add(addresses ...string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	added := false
	for _, a := range addresses {
		if _, _, err := net.SplitHostPort(a); err == nil && !slices.Contains(c.addresses, a) {
			c.addresses, c.conns = append(c.addresses, a), append(c.conns, nil)
			added = true
		}
	}
	return added
}

// Leave turns to the next coordinator because of err, which a call to the current one returned.
func (c *Client) Leave(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.leave(c.current, err)
}

// leave turns away from coordinator i unless another call has done so. A connection that gave a real answer is kept.
func (c *Client) leave(i int, err error) {
	if rpcerr.Reason(err) == "" && c.conns[i] != nil {
		_ = c.conns[i].Close() // a new one does not wait for the back-off of the old one.
		c.conns[i] = nil
	}
	if c.current == i {
		c.current = (i + 1) % len(c.addresses)
	}
}

// Invoke performs a unary call and repeats it, with the same request, on the other coordinators until one answers or ctx
// ends. Requests that change something carry a request id, so that a repeated one is not performed twice.
func (c *Client) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	failures := &Unreachable{}
	pause := firstPause
	for {
		hope := false
		for range c.Addresses() {
			conn, i, address, err := c.conn()
			if err != nil {
				return err
			}
			err = conn.Invoke(ctx, method, args, reply, opts...)
			if err == nil {
				return nil
			}
			if (ctx.Err() != nil || status.Code(err) == codes.DeadlineExceeded) && len(failures.Errors) > 0 {
				return failures
			}
			if !Retryable(err) {
				return err
			}
			hope = hope || !distrust(err)
			failures.add(address, err)
			c.mu.Lock()
			c.leave(i, err)
			c.mu.Unlock()
		}
		if !hope {
			return failures
		}
		if c.options.Notify != nil && pause == firstPause {
			c.options.Notify(failures.Error())
		}
		if err := wait(ctx, pause/2+rand.N(pause/2)); err != nil {
			return failures
		}
		pause = min(2*pause, longestPause)
	}
}

// NewStream opens a stream to the current coordinator. It does not repeat anything: who reads the stream knows where to
// resume, and calls Leave.
func (c *Client) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	conn, _, _, err := c.conn()
	if err != nil {
		return nil, err
	}
	return conn.NewStream(ctx, desc, method, opts...)
}

// Addresses returns the coordinators that are tried, in their order.
func (c *Client) Addresses() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.addresses)
}

// conn returns the connection to the current coordinator, its place and its address.
func (c *Client) conn() (conn *grpc.ClientConn, i int, address string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	i, address = c.current, c.addresses[c.current]
	if c.conns[i] != nil {
		return c.conns[i], i, address, nil
	}
	conn, err = grpc.NewClient("passthrough:///"+address,
		grpc.WithTransportCredentials(credentials.NewTLS(c.options.TLS)),
		grpc.WithNoProxy(), // a proxy could not pass mutual TLS on, and coordinators are private.
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			return (&net.Dialer{Timeout: connectTimeout}).DialContext(ctx, "tcp", address)
		}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: firstPause, Multiplier: 1.6, Jitter: 0.2, MaxDelay: longestPause},
			MinConnectTimeout: connectTimeout,
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 5 * time.Second}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer)),
		grpc.WithDisableServiceConfig(),
	)
	if err != nil {
		return nil, i, address, fmt.Errorf("coordinator %s: %w", address, err)
	}
	c.conns[i] = conn
	return conn, i, address, nil
}

// Retryable tells whether the same request may be sent again to another coordinator.
func Retryable(err error) bool {
	switch rpcerr.Reason(err) {
	case "NO_LEADER", "NOT_LEADER", "OUTCOME_UNKNOWN", "STALE":
		return true
	}
	return status.Code(err) == codes.Unavailable
}

// Unreachable says that no coordinator answered.
type Unreachable struct {
	// Addresses and Errors of the last round, in the order of the attempts.
	Addresses []string
	Errors    []error
}

func (u *Unreachable) add(address string, err error) {
	for i, a := range u.Addresses {
		if a == address {
			u.Errors[i] = err
			return
		}
	}
	u.Addresses = append(u.Addresses, address)
	u.Errors = append(u.Errors, err)
}

// Error names every coordinator and what became of it.
func (u *Unreachable) Error() string {
	parts := make([]string, len(u.Addresses))
	for i, a := range u.Addresses {
		parts[i] = a + ": " + Plain(u.Errors[i])
	}
	return strings.Join(parts, "; ")
}

// GRPCStatus is that of the last error with a reason, so that "no leader" is not hidden by a coordinator that is down. It
// is UNAUTHENTICATED if no coordinator would have us, or we none.
func (u *Unreachable) GRPCStatus() *status.Status {
	code := codes.Unauthenticated
	for _, err := range u.Errors {
		if !distrust(err) {
			code = codes.Unavailable
		}
	}
	for i := len(u.Errors) - 1; i >= 0; i-- {
		if rpcerr.Reason(u.Errors[i]) != "" {
			s := status.Convert(u.Errors[i]).Proto()
			s.Message = u.Error()
			return status.FromProto(s)
		}
	}
	return status.New(code, u.Error())
}

// distrust tells whether the two ends of a connection did not accept each other's certificates: trying again will not help.
func distrust(err error) bool {
	if status.Code(err) != codes.Unavailable || rpcerr.Reason(err) != "" {
		return false
	}
	text := status.Convert(err).Message()
	if strings.Contains(text, "remote error: tls: ") {
		return true
	}
	_, why, handshake := strings.Cut(text, "authentication handshake failed: ")
	for _, network := range []string{"EOF", "timeout", "deadline", "reset", "broken pipe", "canceled"} {
		if strings.Contains(why, network) {
			return false
		}
	}
	return handshake
}

// Plain returns what is wrong with a connection, without gRPC's and Go's words around it.
func Plain(err error) string {
	text := rpcerr.Message(err)
	if rpcerr.Reason(err) != "" {
		return text
	}
	for _, known := range []struct{ part, say string }{
		{"connection refused", "connection refused"},
		{"no such host", "no such host name"},
		{"i/o timeout", "no answer within 2s"},
		{"context deadline exceeded", "no answer within 2s"},
		{"no route to host", "no route to host"},
		{"network is unreachable", "network is unreachable"},
		{"connection reset", "connection was cut"},
		{"error reading from server: EOF", "connection was cut"},
		{"the connection is draining", "connection was closed"},
		{"expired certificate", "its certificate or ours has expired"},
	} {
		if strings.Contains(text, known.part) {
			return known.say
		}
	}
	for _, before := range []string{"authentication handshake failed: ", "desc = ", "connection error: "} {
		if _, after, ok := strings.Cut(text, before); ok {
			text = strings.Trim(after, `"`)
		}
	}
	return text
}

func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
