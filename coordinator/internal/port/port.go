// Package port owns the coordinator's one TCP port: it does the TLS handshakes and sorts the connections by their protocol into three
// listeners, for gRPC, for agents and for raft. Who is let in is said by its tls.Config and by Admit, what a connection is for by those
// who accept it.
package port

import (
	"container/list"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/spheroseg/muster/internal/grpcserver"
	"github.com/spheroseg/muster/internal/mtls"
	accessv1 "github.com/spheroseg/muster/proto/gen/muster/access/v1"
)

const (
	acceptPauseFirst = 5 * time.Millisecond
	acceptPauseLast  = time.Second
)

// Options of a Port. Listener, TLS and Logger are required.
type Options struct {
	// Listener is the TCP listener. The Port closes it.
	Listener net.Listener
	// TLS of mtls.Server, with the protocols of the three listeners.
	TLS *tls.Config
	// Admit decides about a connection with a certificate after its handshake, and may take a while; nil lets all in that TLS has verified.
	Admit func(alpn string, caller grpcserver.Caller) error
	// HandshakeTimeout closes a connection that has not finished its handshake; default 5 s.
	HandshakeTimeout time.Duration
	// MaxHandshakes at a time; default 200. A connection beyond that waits for one to end, and after Patience takes the place of the
	// oldest: one that is slow is most likely silent, and whoever opens silent connections must not keep raft out.
	MaxHandshakes int
	// Patience with the oldest handshake while others wait; default 1 s. It must be long enough for an honest handshake when many
	// agents connect at once.
	Patience time.Duration
	// Logger of the port.
	Logger *slog.Logger
}

// Port hands out connections whose TLS handshake is done: what its listeners accept is always a *tls.Conn.
type Port struct {
	opts   Options
	logger *slog.Logger
	doors  map[string]*door
	// closed is closed by Close.
	closed chan struct{}
	// freed has a token when a handshake has ended.
	freed chan struct{}

	mu       sync.Mutex
	shut     bool
	conns    map[*conn]struct{}
	pending  *list.List // of *conn in handshake, oldest first
	closeErr error
}

// conn is an accepted TCP connection. It leaves the list of its port when it is closed.
type conn struct {
	net.Conn

	port  *Port
	began time.Time
	place *list.Element // in pending; guarded by port.mu
}

// New returns a Port; nothing is accepted until Run.
func New(o Options) (*Port, error) {
	if o.Listener == nil || o.TLS == nil || o.Logger == nil {
		return nil, errors.New("port: options Listener, TLS and Logger are required")
	}
	if o.HandshakeTimeout <= 0 {
		o.HandshakeTimeout = 5 * time.Second
	}
	if o.MaxHandshakes <= 0 {
		o.MaxHandshakes = 200
	}
	if o.Patience <= 0 {
		o.Patience = time.Second
	}
	p := &Port{
		opts:    o,
		logger:  o.Logger.With("component", "port"),
		doors:   make(map[string]*door),
		closed:  make(chan struct{}),
		freed:   make(chan struct{}, 1),
		conns:   make(map[*conn]struct{}),
		pending: list.New(),
	}
	for _, alpn := range []string{mtls.ALPNgRPC, mtls.ALPNAgent, mtls.ALPNRaft} {
		p.doors[alpn] = &door{addr: o.Listener.Addr(), port: p.closed, conns: make(chan *tls.Conn), closed: make(chan struct{})}
	}
	return p, nil
}

// GRPC is the listener for users, joiners and other coordinators. Their connections may be without a certificate.
func (p *Port) GRPC() net.Listener { return p.doors[mtls.ALPNgRPC] }

// Agents is the listener for connections over which agents serve.
func (p *Port) Agents() net.Listener { return p.doors[mtls.ALPNAgent] }

// Raft is the listener for raft connections of other coordinators.
func (p *Port) Raft() net.Listener { return p.doors[mtls.ALPNRaft] }

// Run accepts connections until ctx ends or Close is called, which is no error. It returns when all handshakes have ended.
func (p *Port) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = p.Close() }) // Close keeps its error
	defer stop()
	var handshakes sync.WaitGroup
	err := p.accept(ctx, &handshakes)
	err = errors.Join(err, p.Close())
	cancel()
	handshakes.Wait()
	return err
}

func (p *Port) accept(ctx context.Context, handshakes *sync.WaitGroup) error {
	pause := acceptPauseFirst
	for {
		raw, err := p.opts.Listener.Accept()
		if err == nil {
			pause = acceptPauseFirst
			if c := p.enter(raw); c != nil {
				handshakes.Go(func() { p.greet(ctx, c) })
			}
			continue
		}
		if p.isClosed() {
			return nil
		}
		if errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("accept on %s: %w", p.opts.Listener.Addr(), err)
		}
		// Out of file descriptors, most likely: it passes when connections end.
		p.logger.Error("connections cannot be accepted", "err", err, "pause", pause)
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-p.closed:
		}
		timer.Stop()
		pause = min(2*pause, acceptPauseLast)
	}
}

// enter waits until there is room for one more handshake; nil means that the port was closed.
func (p *Port) enter(raw net.Conn) *conn {
	c := &conn{Conn: raw, port: p}
	for {
		wait, oldest, ok := p.tryEnter(c)
		switch {
		case !ok:
			_ = raw.Close() // nobody has used it
			return nil
		case oldest != nil:
			p.logger.Debug("slow handshake gave way", "remote", oldest.RemoteAddr())
			_ = oldest.Close() // its handshake ends with an error
			continue
		case wait == 0:
			return c
		}
		timer := time.NewTimer(wait)
		select {
		case <-p.freed:
		case <-timer.C:
		case <-p.closed:
		}
		timer.Stop()
	}
}

// tryEnter lets c in, or names the handshake that must give way, or says how long that may still take.
func (p *Port) tryEnter(c *conn) (wait time.Duration, oldest *conn, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.shut {
		return 0, nil, false
	}
	now := time.Now()
	if p.pending.Len() < p.opts.MaxHandshakes {
		c.began = now
		c.place = p.pending.PushBack(c)
		p.conns[c] = struct{}{}
		return 0, nil, true
	}
	front, isConn := p.pending.Front().Value.(*conn)
	if !isConn {
		return 0, nil, false
	}
	if wait = p.opts.Patience - now.Sub(front.began); wait > 0 {
		return wait, nil, true
	}
	return 0, front, true
}

// greet does the handshake and hands the connection out.
func (p *Port) greet(ctx context.Context, c *conn) {
	ctx, cancel := context.WithTimeout(ctx, p.opts.HandshakeTimeout)
	defer cancel()
	secure := tls.Server(c, p.opts.TLS)
	err := secure.HandshakeContext(ctx)
	p.endHandshake(c)
	if err == nil {
		err = p.handOut(ctx, secure)
	}
	if err != nil {
		p.logger.Debug("connection refused", "remote", c.RemoteAddr(), "err", err)
		_ = secure.Close() // it was of no use to either side
	}
}

func (p *Port) handOut(ctx context.Context, c *tls.Conn) error {
	cs := c.ConnectionState()
	door, ok := p.doors[cs.NegotiatedProtocol]
	if !ok {
		return fmt.Errorf("protocol %q is none of this port's", cs.NegotiatedProtocol)
	}
	caller, err := grpcserver.CallerOf(cs)
	if err != nil {
		return err
	}
	if err := checkRole(cs.NegotiatedProtocol, caller); err != nil {
		return err
	}
	if !caller.Anonymous && p.opts.Admit != nil {
		if err := p.opts.Admit(cs.NegotiatedProtocol, caller); err != nil {
			return fmt.Errorf("%s is not admitted: %w", caller, err)
		}
	}
	return door.give(ctx, c)
}

// checkRole repeats what the handshake has checked: a port with a laxer tls.Config must not let anybody near raft.
func checkRole(alpn string, caller grpcserver.Caller) error {
	var want accessv1.Role
	switch alpn {
	case mtls.ALPNAgent:
		want = accessv1.Role_ROLE_AGENT
	case mtls.ALPNRaft:
		want = accessv1.Role_ROLE_COORDINATOR
	default:
		return nil
	}
	if caller.Anonymous || caller.ID.Role != want {
		return fmt.Errorf("%s may not speak %s: that is for %s", caller, alpn, want)
	}
	return nil
}

// Close closes the port and every connection that it has handed out. Calling it again returns the same error.
func (p *Port) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.shut {
		return p.closeErr
	}
	p.shut = true
	close(p.closed)
	if err := p.opts.Listener.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		p.closeErr = fmt.Errorf("close %s: %w", p.opts.Listener.Addr(), err)
	}
	for c := range p.conns {
		_ = c.Conn.Close() // not c.Close, which takes the lock; the other side sees the end either way
	}
	clear(p.conns)
	return p.closeErr
}

func (p *Port) isClosed() bool {
	select {
	case <-p.closed:
		return true
	default:
		return false
	}
}

// Close closes the connection.
func (c *conn) Close() error {
	p := c.port
	p.mu.Lock()
	delete(p.conns, c)
	p.leave(c)
	p.mu.Unlock()
	return c.Conn.Close()
}

func (p *Port) endHandshake(c *conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.leave(c)
}

// leave takes c out of the handshakes, with p.mu held.
func (p *Port) leave(c *conn) {
	if c.place == nil {
		return
	}
	p.pending.Remove(c.place)
	c.place = nil
	select {
	case p.freed <- struct{}{}:
	default: // there is a token already
	}
}
