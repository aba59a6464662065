package hosts

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"github.com/spheroseg/muster/internal/grpcserver"
	accessv1 "github.com/spheroseg/muster/proto/gen/muster/access/v1"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
)

const (
	readyTimeout = 10 * time.Second
	watchRetry   = time.Second
	pingAfter    = 10 * time.Second
	pingTimeout  = 10 * time.Second
	// bufferBytes of a write are taken from a pool, because a coordinator has a connection of every host. Reading needs no buffer: TLS has one.
	bufferBytes = 4 << 10
)

// errRelisted ends a watch that was opened with an older list of coordinators.
var errRelisted = errors.New("hosts: the coordinators have changed")

// link is one connection of an agent.
type link struct {
	host   string
	remote string
	cc     *grpc.ClientConn
	// end closes the connection, soon.
	end context.CancelFunc
	// relist ends the watch, so that it is opened with the newest list of coordinators; nil before the first. The mutex of Hosts guards it.
	relist context.CancelCauseFunc
}

// Serve accepts agents' connections, whose TLS handshake is done, until ctx ends or the listener is closed. It closes the listener, and
// returns when all connections have ended.
func (h *Hosts) Serve(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(ctx, func() { _ = l.Close() }) // Accept tells
	defer stop()
	var links sync.WaitGroup
	defer links.Wait()
	defer cancel()
	if h.opts.Coordinators != nil {
		links.Go(func() { h.keepListing(ctx) })
	}
	for {
		conn, err := l.Accept()
		if errors.Is(err, net.ErrClosed) || err != nil && ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("accept agents: %w", err)
		}
		links.Go(func() {
			if err := h.serve(ctx, conn); err != nil {
				h.logger.Warn("agent refused", "remote", conn.RemoteAddr().String(), "err", err)
			}
		})
	}
}

// serve holds one connection until it ends; an error means that it was never a host's.
func (h *Hosts) serve(ctx context.Context, conn net.Conn) error {
	defer conn.Close()
	caller, err := agent(conn)
	if err != nil {
		return err
	}
	id := caller.ID
	if err := h.opts.Registered(caller); err != nil {
		return fmt.Errorf("%s: %w", id, err)
	}
	cc, err := reverse(conn, id.Name)
	if err != nil {
		return err
	}
	defer cc.Close()
	if err := waitReady(ctx, cc); err != nil {
		return fmt.Errorf("%s: %w", id, err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	l := &link{host: id.Name, remote: conn.RemoteAddr().String(), cc: cc, end: cancel}
	h.join(l)
	defer h.leave(l)
	h.watch(ctx, l) // in this goroutine, because there is one for every host
	return nil
}

// agent returns who is at the other end of a connection, if that is an agent.
func agent(conn net.Conn) (grpcserver.Caller, error) {
	secure, ok := conn.(interface{ ConnectionState() tls.ConnectionState }) // *tls.Conn
	if !ok {
		return grpcserver.Caller{}, fmt.Errorf("connection %T is not TLS", conn)
	}
	caller, err := grpcserver.CallerOf(secure.ConnectionState())
	if err != nil {
		return grpcserver.Caller{}, err
	}
	if caller.Anonymous {
		return grpcserver.Caller{}, errors.New("the agent has shown no certificate")
	}
	if caller.ID.Role != accessv1.Role_ROLE_AGENT {
		return grpcserver.Caller{}, fmt.Errorf("%s is no agent", caller)
	}
	return caller, nil
}

// reverse makes a connection that a peer has opened one over which this side calls. It is used up when the connection ends: it must
// never connect again by itself.
func reverse(conn net.Conn, host string) (*grpc.ClientConn, error) {
	var used atomic.Bool
	cc, err := grpc.NewClient("passthrough:///"+host,
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
			if used.Swap(true) {
				return nil, errors.New("the agent's connection has ended: only the agent can open another")
			}
			return conn, nil
		}),
		grpc.WithTransportCredentials(grpcserver.Handshaked()),
		grpc.WithIdleTimeout(0),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: pingAfter, Timeout: pingTimeout, PermitWithoutStream: true}),
		grpc.WithReadBufferSize(0),
		grpc.WithWriteBufferSize(bufferBytes),
		grpc.WithDisableServiceConfig(),
		grpc.WithDisableHealthCheck(),
	)
	if err != nil {
		return nil, fmt.Errorf("reverse the connection of %s: %w", host, err)
	}
	return cc, nil
}

// waitReady returns when the agent serves on the connection.
func waitReady(ctx context.Context, cc *grpc.ClientConn) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	cc.Connect()
	for {
		switch state := cc.GetState(); state {
		case connectivity.Ready:
			return nil
		case connectivity.TransientFailure, connectivity.Shutdown:
			return errors.New("the agent ended the connection before it served on it")
		default:
			if !cc.WaitForStateChange(ctx, state) {
				return fmt.Errorf("the agent does not serve on its connection: %w", context.Cause(ctx))
			}
		}
	}
}

// watch follows the host's beats until the connection or ctx ends.
func (h *Hosts) watch(ctx context.Context, l *link) {
	for l.cc.GetState() == connectivity.Ready {
		err := h.follow(ctx, l)
		if ctx.Err() != nil {
			return
		}
		if errors.Is(err, errRelisted) {
			continue
		}
		level := slog.LevelWarn
		if code := status.Code(err); code == codes.Unavailable || code == codes.Canceled { // the connection is about to end
			level = slog.LevelDebug
		}
		h.logger.Log(ctx, level, "host does not tell how it is", "host", l.host, "err", err)
		retry, cancel := context.WithTimeout(ctx, watchRetry)
		l.cc.WaitForStateChange(retry, connectivity.Ready)
		cancel()
	}
}

// follow watches the host over one stream, which ends with errRelisted when the host must be told of other coordinators.
func (h *Hosts) follow(ctx context.Context, l *link) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stream, err := agentv1.NewHostServiceClient(l.cc).WatchHost(ctx, &agentv1.WatchHostRequest{Coordinators: h.listed(l, cancel)})
	for err == nil {
		var resp *agentv1.WatchHostResponse
		if resp, err = stream.Recv(); err == nil {
			h.beat(l, resp.GetInventory())
		}
	}
	if cause := context.Cause(ctx); errors.Is(cause, errRelisted) {
		return cause
	}
	return err
}
