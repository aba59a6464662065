package grpcserver

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"runtime/debug"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/spheroseg/muster/internal/identity"
	"github.com/spheroseg/muster/internal/rpcerr"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

const (
	handshakeTimeout = 5 * time.Second
	maxStreams       = 128
	maxHeaderBytes   = 16 << 10
	// maxMessageBytes leaves room for what surrounds the largest request; the rules are checked by the gate.
	maxMessageBytes = MaxRequestBytes + 64<<10
	minPing         = 5 * time.Second
)

// New returns a server all of whose calls pass the gate. It takes connections whose TLS handshake is done, unless opts has other grpc.Creds.
// After registering the services, ask Gate.Check. The other end of a connection must begin HTTP/2 within 5 s of the server getting it.
func New(g *Gate, opts ...grpc.ServerOption) *grpc.Server {
	base := []grpc.ServerOption{
		grpc.Creds(Handshaked()),
		grpc.ConnectionTimeout(handshakeTimeout),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.MaxHeaderListSize(maxHeaderBytes),
		grpc.MaxRecvMsgSize(maxMessageBytes),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: minPing, PermitWithoutStream: true}),
		grpc.ChainUnaryInterceptor(g.unary),
		grpc.ChainStreamInterceptor(g.stream),
	}
	return grpc.NewServer(append(base, opts...)...)
}

// CallerOf returns who is at the other end of a TLS connection made with a configuration of mtls. A certificate that has expired since the
// handshake is nobody's.
func CallerOf(cs tls.ConnectionState) (Caller, error) {
	if !cs.HandshakeComplete {
		return Caller{}, unknown("the connection is not encrypted")
	}
	if len(cs.PeerCertificates) == 0 {
		return Caller{Anonymous: true}, nil
	}
	leaf := cs.PeerCertificates[0]
	id, err := identity.FromCertificate(leaf)
	if err != nil {
		return Caller{}, unknown("%v", err)
	}
	if err := unexpired(id, leaf.NotAfter); err != nil {
		return Caller{}, err
	}
	return Caller{ID: id, Serial: leaf.SerialNumber.Bytes()}, nil
}

// unexpired refuses an identity whose certificate has ended.
func unexpired(id identity.ID, end time.Time) error {
	if time.Now().After(end) {
		return unknown("the certificate of %s expired at %s: join or log in again", id, end.Format(time.RFC3339))
	}
	return nil
}

func unknown(format string, args ...any) error {
	return rpcerr.New(codes.Unauthenticated, coordinatorv1.ErrorReason_ERROR_REASON_UNKNOWN_IDENTITY, format, args...)
}

// callerOf returns the caller of a call and the end of its certificate; zero if it has none.
func callerOf(ctx context.Context) (Caller, time.Time, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return Caller{}, time.Time{}, unknown("the call has no connection")
	}
	switch info := p.AuthInfo.(type) {
	case peerInfo:
		if info.err != nil || info.caller.Anonymous {
			return info.caller, time.Time{}, info.err
		}
		end := info.State.PeerCertificates[0].NotAfter
		return info.caller, end, unexpired(info.caller.ID, end)
	case credentials.TLSInfo: // of other grpc.Creds
		c, err := CallerOf(info.State)
		if err != nil || c.Anonymous {
			return c, time.Time{}, err
		}
		return c, info.State.PeerCertificates[0].NotAfter, nil
	default:
		return Caller{}, time.Time{}, unknown("the connection is not encrypted")
	}
}

// unary lets a call pass or refuses it.
func (g *Gate) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (resp any, err error) {
	caller, start := Caller{}, time.Now()
	defer func() { // last, so that it logs what the caller gets.
		err = g.answer(ctx, info.FullMethod, caller, start, recover(), err)
	}()
	caller, _, err = callerOf(ctx)
	if err != nil {
		return nil, err
	}
	if err := g.Authorize(ctx, info.FullMethod, caller, sizeOf(req)); err != nil {
		return nil, err
	}
	return handler(WithCaller(ctx, caller), req)
}

// stream lets a stream pass or refuses it. Its context ends with the caller's certificate.
func (g *Gate) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) (err error) {
	caller, start := Caller{}, time.Now()
	ctx := ss.Context()
	defer func() {
		err = g.answer(ctx, info.FullMethod, caller, start, recover(), err)
	}()
	caller, end, err := callerOf(ctx)
	if err != nil {
		return err
	}
	if err := g.Authorize(ctx, info.FullMethod, caller, 0); err != nil {
		return err
	}
	if !end.IsZero() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadlineCause(ctx, end, unknown("the certificate of %s has expired", caller))
		defer cancel()
	}
	return handler(srv, &gatedStream{ServerStream: ss, ctx: WithCaller(ctx, caller), gate: g, method: info.FullMethod})
}

// answer turns what a handler ended with into what the caller gets: a status, or INTERNAL whose cause only the log has.
func (g *Gate) answer(ctx context.Context, method string, c Caller, start time.Time, panicked any, err error) error {
	if panicked == nil && err == nil && !g.logger.Enabled(ctx, slog.LevelDebug) {
		return nil // nearly every call ends here
	}
	logger := g.logger.With("method", method, "caller", c.String(), "duration", time.Since(start))
	if panicked != nil {
		logger.Error("call panicked", "panic", panicked, "stack", string(debug.Stack()))
		return status.Error(codes.Internal, "internal error: the server's log has the cause")
	}
	if err == nil {
		logger.Debug("call")
		return nil
	}
	if cause := context.Cause(ctx); ctx.Err() != nil && rpcerr.Reason(cause) != "" {
		err = cause // the certificate has expired: that, not a deadline of the caller's, ended the stream.
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		err = status.FromContextError(err).Err()
	}
	st, ok := rpcerr.Status(err)
	if !ok {
		logger.Error("call failed", "err", err)
		return status.Error(codes.Internal, "internal error: the server's log has the cause")
	}
	level := slog.LevelDebug
	switch st.Code() {
	case codes.PermissionDenied, codes.Unauthenticated, codes.ResourceExhausted:
		level = slog.LevelInfo
	case codes.Internal, codes.Unknown, codes.DataLoss:
		level = slog.LevelError
	}
	logger.Log(ctx, level, "call", "code", st.Code().String(), "reason", rpcerr.Reason(err), "err", st.Message())
	return st.Err()
}

func sizeOf(msg any) int {
	if m, ok := msg.(proto.Message); ok {
		return proto.Size(m)
	}
	return 0
}
