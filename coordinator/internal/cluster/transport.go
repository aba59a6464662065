package cluster

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

const (
	// transportTimeout bounds one raft message; for snapshots raft makes it longer by their size.
	transportTimeout = 5 * time.Second
	// transportPool is how many idle connections to a member are kept.
	transportPool = 3
)

// stream is the raft.StreamLayer over the given listener and dialler. It knows every connection, so that closing it ends them all: raft
// itself would wait for a member that stalls in the middle of a snapshot.
type stream struct {
	listener net.Listener
	dial     func(ctx context.Context, addr string) (net.Conn, error)
	addr     address

	mu     sync.Mutex
	conns  map[*streamConn]struct{}
	closed bool
}

// address is this member's address as others reach it, which raft tells them; it is not that of the listener.
type address string

func (a address) Network() string { return "tcp" }
func (a address) String() string  { return string(a) }

func newTransport(o *Options) transport {
	return transport{raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream:                  &stream{listener: o.Raft, dial: o.DialRaft, addr: address(o.Address), conns: make(map[*streamConn]struct{})},
		MaxPool:                 transportPool,
		Timeout:                 transportTimeout,
		Logger:                  newHCLog(o.Logger).Named("transport"),
		MsgpackUseNewTimeFormat: true,
	})}
}

// Accept returns the next connection of another member.
func (s *stream) Accept() (net.Conn, error) {
	c, err := s.listener.Accept()
	if err != nil {
		return nil, err
	}
	return s.track(c)
}

// Dial connects to another member.
func (s *stream) Dial(addr raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	c, err := s.dial(ctx, string(addr))
	if err != nil {
		return nil, err
	}
	return s.track(c)
}

// Addr is the address that other members are told.
func (s *stream) Addr() net.Addr { return s.addr }

// Close stops accepting and closes every connection.
func (s *stream) Close() error {
	s.mu.Lock()
	s.closed = true
	conns := make([]*streamConn, 0, len(s.conns))
	for c := range s.conns {
		conns = append(conns, c)
	}
	s.mu.Unlock()
	err := s.listener.Close()
	for _, c := range conns {
		_ = c.Close() // the other side sees the end either way
	}
	return err
}

func (s *stream) track(c net.Conn) (net.Conn, error) {
	sc := &streamConn{Conn: c, stream: s}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errors.Join(net.ErrClosed, c.Close())
	}
	s.conns[sc] = struct{}{}
	return sc, nil
}

// streamConn leaves the list of its stream when it is closed.
type streamConn struct {
	net.Conn

	stream *stream
}

func (c *streamConn) Close() error {
	c.stream.mu.Lock()
	delete(c.stream.conns, c)
	c.stream.mu.Unlock()
	return c.Conn.Close()
}
