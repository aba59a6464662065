// Package uplink owns the agent's connections to its coordinators: it dials every one of them, for ever, and hands each connection over as if it
// had been accepted. What is served on them is left to a gRPC server, who may call there to its gate, and where the coordinators are to
// whoever calls Set.
package uplink

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/spheroseg/muster/internal/mtls"
)

const (
	dialTimeout = 5 * time.Second
	// The pauses between attempts grow from firstPause to lastPause, and start over after a connection that held for stable: longer than a
	// coordinator that dies of its own start, shorter than what passes between two restarts that somebody asks for.
	firstPause = 100 * time.Millisecond
	lastPause  = 5 * time.Second
	stable     = 10 * time.Second
	// maxHost is the longest name of a host.
	maxHost = 255
)

// Options configure an Uplink. All of them are required.
type Options struct {
	// Coordinators by host:port, to start with.
	Coordinators []string
	// TLS of the connections: it checks who answers.
	TLS *tls.Config
	// Logger receives each connection made and lost.
	Logger *slog.Logger
}

// Uplink is a net.Listener whose connections are dialled by Run.
type Uplink struct {
	opts   Options
	logger *slog.Logger
	dialed chan net.Conn
	closed chan struct{} // closed by Close.
	once   sync.Once

	mu    sync.Mutex
	links map[string]*link // by address.
	added chan struct{}    // holds a token when links has some that Run has not started.
}

// New returns an Uplink that dials nobody until Run is called.
func New(o Options) (*Uplink, error) {
	if len(o.Coordinators) == 0 || o.TLS == nil || o.Logger == nil {
		return nil, errors.New("uplink: Coordinators, TLS and Logger are required")
	}
	for _, c := range o.Coordinators {
		if err := CheckAddress(c); err != nil {
			return nil, err
		}
	}
	u := &Uplink{
		opts: o, logger: o.Logger.With("component", "uplink"), dialed: make(chan net.Conn), closed: make(chan struct{}),
		links: make(map[string]*link), added: make(chan struct{}, 1),
	}
	u.Set(o.Coordinators)
	return u, nil
}

// CheckAddress says what is wrong with a coordinator's address.
func CheckAddress(address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("coordinator %q is not host:port: %w", address, err)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || host == "" || len(host) > maxHost {
		return fmt.Errorf("coordinator %q is not host:port", address)
	}
	return nil
}

// Run keeps one connection to each coordinator until ctx ends or Close is called. Connections that were handed over are their new owner's.
func (u *Uplink) Run(ctx context.Context) error {
	var running sync.WaitGroup
	defer running.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for {
		u.begin(ctx, &running)
		select {
		case <-u.added:
		case <-u.closed:
			return nil
		case <-ctx.Done():
			return nil
		}
	}
}

// keep holds a connection to one coordinator until ctx ends.
func (u *Uplink) keep(ctx context.Context, l *link) {
	logger := u.logger.With("coordinator", l.address)
	pause, told := firstPause, ""
	for ctx.Err() == nil {
		if u.elsewhere(l) { // a second connection to the same coordinator would cost it the first.
			rest(ctx, lastPause)
			continue
		}
		conn, ended, err := u.dial(ctx, l.address)
		switch {
		case err == nil && !u.reached(l, peerName(conn)):
			_ = conn.Close()
		case err == nil:
			since := time.Now()
			logger.Info("connected", "peer", peerName(conn))
			u.hand(ctx, conn, ended)
			u.lost(l)
			if told = ""; ctx.Err() == nil {
				logger.Info("connection lost", "held", time.Since(since).Round(time.Millisecond))
			}
			if time.Since(since) >= stable {
				pause = firstPause
			}
		case u.giveUp(l):
			logger.Info("coordinator is no member any more and does not answer, it is dialled no longer", "err", err)
		default:
			if text := err.Error(); text != told && ctx.Err() == nil { // the same again is no news.
				logger.Warn("coordinator is not reached, trying on", "err", err)
				told = text
			}
		}
		rest(ctx, time.Duration(rand.Int64N(int64(pause)))) // full jitter: a fleet must not come back in step.
		pause = min(2*pause, lastPause)
	}
}

// rest waits for d or until ctx ends.
func rest(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// dial opens a connection and does the handshake. ended is closed when the connection is.
func (u *Uplink) dial(ctx context.Context, address string) (conn *tls.Conn, ended <-chan struct{}, err error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	raw, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, nil, err
	}
	watched := &watchedConn{Conn: raw, ended: make(chan struct{})}
	conn = tls.Client(watched, u.opts.TLS)
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("handshake with %s: %w", address, err), raw.Close())
	}
	if got := conn.ConnectionState().NegotiatedProtocol; !slices.Contains(u.opts.TLS.NextProtos, got) {
		return nil, nil, errors.Join(fmt.Errorf("%s speaks %q, not %q: is it the port of a coordinator?", address, got, u.opts.TLS.NextProtos), raw.Close())
	}
	return conn, watched.ended, nil
}

// hand gives a connection to whoever accepts next, and returns when it has ended.
func (u *Uplink) hand(ctx context.Context, conn net.Conn, ended <-chan struct{}) {
	select {
	case u.dialed <- conn:
	case <-u.closed:
		_ = conn.Close()
		return
	case <-ctx.Done():
		_ = conn.Close()
		return
	}
	select {
	case <-ended:
	case <-ctx.Done(): // the server ends it, when it has answered what it was asked.
	}
}

// Accept returns the next connection, its handshake done. After Close it returns net.ErrClosed.
func (u *Uplink) Accept() (net.Conn, error) {
	select {
	case conn := <-u.dialed:
		return conn, nil
	case <-u.closed:
		return nil, net.ErrClosed
	}
}

// Close ends Accept, and may be called more than once. Connections go on.
func (u *Uplink) Close() error {
	u.once.Do(func() { close(u.closed) })
	return nil
}

// Addr says that nothing is listened on.
func (u *Uplink) Addr() net.Addr { return addr{} }

type addr struct{}

func (addr) Network() string { return "uplink" }
func (addr) String() string  { return "coordinators" }

// watchedConn tells when it is closed.
type watchedConn struct {
	net.Conn
	once  sync.Once
	ended chan struct{}
}

// Close closes the connection.
func (c *watchedConn) Close() error {
	c.once.Do(func() { close(c.ended) })
	return c.Conn.Close()
}

func peerName(conn *tls.Conn) string {
	id, _ := mtls.PeerID(conn.ConnectionState())
	return id.String()
}
