package grpcserver_test

import (
	"crypto/tls"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/spheroseg/muster/internal/grpcserver"
	"github.com/spheroseg/muster/internal/mtls"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

func TestReversedConnection(t *testing.T) {
	f := newFleet(t, nil)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()

	host := &hostService{callers: make(chan string, 1)}
	agentDone := make(chan error, 1)
	s := grpcserver.New(grpcserver.NewGate(grpcserver.GateOptions{}))
	agentv1.RegisterHostServiceServer(s, host)
	go func() {
		cfg := mtls.Client(f.Credentials(t, agent, "h7"), coordinator, mtls.ALPNAgent)
		conn, err := (&tls.Dialer{Config: cfg}).DialContext(t.Context(), "tcp", l.Addr().String())
		if err != nil {
			agentDone <- err
			return
		}
		agentDone <- s.Serve(listenOn(conn))
	}()

	raw, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	conn := tls.Server(raw, mtls.Server(f.Credentials(t, coordinator, "c1"), mtls.ALPNAgent))
	if err := conn.HandshakeContext(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if id, ok := mtls.PeerID(conn.ConnectionState()); !ok || id.Name != "h7" || id.Role != agent {
		t.Errorf("the acceptor sees %v, %v", id, ok)
	}
	cc, err := grpc.NewClient("passthrough:///h7", grpc.WithTransportCredentials(grpcserver.Handshaked()),
		grpc.WithContextDialer(dialOnce(conn)), grpc.WithIdleTimeout(0))
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	cc.Connect() // the agent's server waits for the preface no longer than its ConnectionTimeout.

	stream, err := agentv1.NewHostServiceClient(cc).WatchHost(testContext(t), &agentv1.WatchHostRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	if got := <-host.callers; got != "spiffe://coordinator.prod.muster/c1" {
		t.Errorf("the agent is called by %s", got)
	}
	s.Stop()
	if err := <-agentDone; err != nil {
		t.Errorf("the agent's server: %v", err)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("after the agent left: %v, want Unavailable", err)
	}
	_, err = agentv1.NewOperationServiceClient(cc).ListOperations(testContext(t), &agentv1.ListOperationsRequest{})
	if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "is gone") {
		t.Errorf("a call after the agent left: %v", err)
	}
}

func TestHandshakedRefuses(t *testing.T) {
	f := newFleet(t, nil)
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	for name, conn := range map[string]net.Conn{"raw": a, "before the handshake": tls.Client(b, mtls.Client(f.Credentials(t, agent, "h7"), coordinator))} {
		if _, _, err := grpcserver.Handshaked().ServerHandshake(conn); err == nil {
			t.Errorf("%s: taken as a server", name)
		}
		if _, _, err := grpcserver.Handshaked().ClientHandshake(t.Context(), "", conn); err == nil {
			t.Errorf("%s: taken as a client", name)
		}
	}
}

func TestSlowReader(t *testing.T) {
	f := newFleet(t, nil)
	f.gate.SetSendTimeout(100 * time.Millisecond)
	ended := make(chan error, 1)
	f.watch = func(out grpc.ServerStreamingServer[coordinatorv1.WatchRunResponse]) (err error) {
		defer func() { ended <- err }()
		for {
			event := &coordinatorv1.WatchRunResponse{Run: &coordinatorv1.Run{Id: strings.Repeat("x", 64<<10)}}
			if err := out.Send(event); err != nil {
				if again := out.Send(event); again == nil || again.Error() != err.Error() {
					t.Errorf("a second send: %v, want %v at once", again, err)
				}
				return err
			}
		}
	}
	cc := f.as(t, f.Credentials(t, viewer, "eve"))
	stream, err := coordinatorv1.NewRunServiceClient(cc).WatchRun(testContext(t), &coordinatorv1.WatchRunRequest{})
	if err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended: // though the client has read nothing.
		wantError(t, err, codes.ResourceExhausted, "")
	case <-testContext(t).Done():
		t.Fatal("the handler is still in Send")
	}
	if !eventually(t, func() bool { return !strings.Contains(stacks(), "gatedStream).SendMsg.func") }) {
		t.Errorf("the abandoned send is still there:\n%s", stacks())
	}
	for err = nil; err == nil; _, err = stream.Recv() {
	}
	wantError(t, err, codes.ResourceExhausted, "")
}

func TestCertificateEndsDuringConnection(t *testing.T) {
	f := newFleet(t, nil)
	f.watch = func(out grpc.ServerStreamingServer[coordinatorv1.WatchRunResponse]) error {
		if err := out.Send(&coordinatorv1.WatchRunResponse{}); err != nil {
			return err
		}
		<-out.Context().Done()
		return out.Context().Err()
	}
	eve := f.CredentialsAt(t, viewer, "eve", time.Now(), 3*time.Second)
	client := coordinatorv1.NewRunServiceClient(f.as(t, eve))
	stream, err := client.WatchRun(testContext(t), &coordinatorv1.WatchRunRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	_, err = client.GetRun(testContext(t), &coordinatorv1.GetRunRequest{})
	wantError(t, err, codes.Unimplemented, "") // it passed the gate.

	_, err = stream.Recv()
	wantError(t, err, codes.Unauthenticated, "UNKNOWN_IDENTITY")
	if now := time.Now(); now.Before(eve.NotAfter()) {
		t.Errorf("the stream ended at %v, before the certificate at %v", now, eve.NotAfter())
	}
	_, err = client.GetRun(testContext(t), &coordinatorv1.GetRunRequest{})
	wantError(t, err, codes.Unauthenticated, "UNKNOWN_IDENTITY")
}

func TestStreamsEndWell(t *testing.T) {
	f := newFleet(t, nil)
	client := coordinatorv1.NewRunServiceClient(f.as(t, f.Credentials(t, viewer, "eve")))
	f.watch = func(out grpc.ServerStreamingServer[coordinatorv1.WatchRunResponse]) error {
		for range 3 {
			if err := out.Send(&coordinatorv1.WatchRunResponse{}); err != nil {
				return err
			}
		}
		return nil
	}
	stream, err := client.WatchRun(testContext(t), &coordinatorv1.WatchRunRequest{})
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for ; err == nil; n++ {
		_, err = stream.Recv()
	}
	if n != 4 || err != io.EOF { //nolint:errorlint // gRPC's end of a stream is io.EOF itself.
		t.Errorf("%d receives, then %v", n, err)
	}

	f.watch = func(grpc.ServerStreamingServer[coordinatorv1.WatchRunResponse]) error { panic("in a stream") }
	stream, err = client.WatchRun(testContext(t), &coordinatorv1.WatchRunRequest{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = stream.Recv()
	wantError(t, err, codes.Internal, "")

	agents := coordinatorv1.NewRunServiceClient(f.as(t, f.Credentials(t, agent, "h7")))
	stream, err = agents.WatchRun(testContext(t), &coordinatorv1.WatchRunRequest{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = stream.Recv()
	wantError(t, err, codes.PermissionDenied, "NOT_ALLOWED")
}

func stacks() string {
	buf := make([]byte, 1<<20)
	return string(buf[:runtime.Stack(buf, true)])
}

// eventually asks until the answer is yes, for 5 seconds.
func eventually(t *testing.T, ask func() bool) bool {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for range 500 {
		if ask() {
			return true
		}
		<-tick.C
	}
	return false
}
