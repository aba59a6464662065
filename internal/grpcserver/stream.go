package grpcserver

import (
	"context"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// sendTimeout is how long one message may wait for a reader. grpc-go itself waits for ever.
const sendTimeout = 10 * time.Second

// gatedStream checks the size of every message received and bounds every send.
type gatedStream struct {
	grpc.ServerStream

	ctx    context.Context //nolint:containedctx // it is what Context returns.
	gate   *Gate
	method string
	broken error // of the send that was given up; only the sending goroutine uses it.
}

// Context returns the context with the caller, which ends with its certificate.
func (s *gatedStream) Context() context.Context { return s.ctx }

// RecvMsg receives a message and checks its size.
func (s *gatedStream) RecvMsg(m any) error {
	if err := s.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	return s.gate.CheckSize(s.method, sizeOf(m))
}

// SendMsg sends a message, or gives the stream up if the reader does not make room for it in time. The handler must then return, which ends
// the abandoned send: that is why nobody can wait for it here.
func (s *gatedStream) SendMsg(m any) error {
	if s.broken != nil {
		return s.broken
	}
	sent := make(chan error, 1)
	go func() { sent <- s.ServerStream.SendMsg(m) }()
	timer := time.NewTimer(s.gate.send)
	defer timer.Stop()
	select {
	case err := <-sent:
		return err
	case <-timer.C:
		s.broken = status.Errorf(codes.ResourceExhausted, "the reader took no message for %s", s.gate.send)
	case <-s.ctx.Done():
		s.broken = status.FromContextError(s.ctx.Err()).Err()
	}
	return s.broken
}
