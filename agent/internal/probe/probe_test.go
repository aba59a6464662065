package probe_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/spheroseg/muster/agent/internal/probe"
	"github.com/spheroseg/muster/internal/rpcerr"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
)

func target(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/away":
		http.Redirect(w, r, "/ok", http.StatusFound)
	case "/slow":
		<-r.Context().Done()
	case "/long":
		_, _ = io.WriteString(w, strings.Repeat("ž", 2000))
	case "/binary":
		_, _ = w.Write([]byte("a\xffb"))
	case "/hangs-up":
		panic(http.ErrAbortHandler)
	case "/breaks-off":
		w.Header().Set("Content-Length", "100")
		_, _ = io.WriteString(w, "half")
		http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	case "/broken":
		http.Error(w, "no database", http.StatusInternalServerError)
	default:
		_, _ = io.WriteString(w, r.Method+" "+r.Host)
	}
}

// closed is an address at which nobody listens.
func closed(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func TestHTTP(t *testing.T) {
	plain, secure := httptest.NewServer(http.HandlerFunc(target)), httptest.NewTLSServer(http.HandlerFunc(target))
	defer plain.Close()
	defer secure.Close()
	for _, tt := range []struct {
		name   string
		req    *agentv1.ProbeHttpRequest
		status int32
		body   string
		err    string // a part of it.
	}{
		{name: "ok", req: &agentv1.ProbeHttpRequest{Url: plain.URL}, status: 200, body: "GET " + plain.Listener.Addr().String()},
		{name: "host header", req: &agentv1.ProbeHttpRequest{Url: plain.URL, HostHeader: "app.test"}, status: 200, body: "GET app.test"},
		{name: "redirect", req: &agentv1.ProbeHttpRequest{Url: plain.URL + "/away"}, status: 302, body: "<a href=\"/ok\">Found</a>.\n\n"},
		{name: "failing", req: &agentv1.ProbeHttpRequest{Url: plain.URL + "/broken"}, status: 500, body: "no database\n"},
		{name: "long body", req: &agentv1.ProbeHttpRequest{Url: plain.URL + "/long"}, status: 200, body: strings.Repeat("ž", 512)},
		{name: "body that is no text", req: &agentv1.ProbeHttpRequest{Url: plain.URL + "/binary"}, status: 200, body: "a\ufffdb"},
		{name: "body that breaks off", req: &agentv1.ProbeHttpRequest{Url: plain.URL + "/breaks-off"}, status: 200, body: "half", err: "broke off"},
		{name: "no answer", req: &agentv1.ProbeHttpRequest{Url: plain.URL + "/hangs-up"}, err: "closed without an answer"},
		{
			name: "late answer", req: &agentv1.ProbeHttpRequest{Url: plain.URL + "/slow", Timeout: durationpb.New(200 * time.Millisecond)},
			err: "no answer within 200ms",
		},
		{name: "nobody listens", req: &agentv1.ProbeHttpRequest{Url: "http://" + closed(t)}, err: "connection refused"},
		{name: "no such name", req: &agentv1.ProbeHttpRequest{Url: "http://nowhere.invalid/"}, err: "nowhere.invalid"},
		{name: "unknown certificate", req: &agentv1.ProbeHttpRequest{Url: secure.URL}, err: "certificate"},
		{name: "any certificate", req: &agentv1.ProbeHttpRequest{Url: secure.URL, Insecure: true, HostHeader: "app.test:8443"}, status: 200, body: "GET app.test:8443"},
		{name: "no tls there", req: &agentv1.ProbeHttpRequest{Url: strings.Replace(plain.URL, "http:", "https:", 1)}, err: "HTTP response to HTTPS client"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := probe.Prober{}.HTTP(t.Context(), tt.req)
			if err != nil {
				t.Fatal(err)
			}
			if got.GetStatus() != tt.status || got.GetBody() != tt.body || !strings.Contains(got.GetError(), tt.err) || (tt.err == "") != (got.GetError() == "") {
				t.Errorf("got %v, want status %d, body %q, error with %q", got, tt.status, tt.body, tt.err)
			}
			if got.GetLatency().AsDuration() <= 0 || len(got.GetBody()) > 1024 || !utf8.ValidString(got.GetBody()) {
				t.Errorf("got latency %s, a body of %d bytes", got.GetLatency().AsDuration(), len(got.GetBody()))
			}
		})
	}
}

func TestTCP(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	got, err := probe.Prober{}.TCP(t.Context(), &agentv1.ProbeTcpRequest{Address: l.Addr().String()})
	if err != nil || !got.GetOpen() || got.GetError() != "" || got.GetLatency().AsDuration() <= 0 {
		t.Errorf("got %v, %v; want it open", got, err)
	}
	for address, text := range map[string]string{closed(t): "connection refused", "nowhere.invalid:80": "nowhere.invalid"} {
		got, err = probe.Prober{}.TCP(t.Context(), &agentv1.ProbeTcpRequest{Address: address})
		if err != nil || got.GetOpen() || !strings.Contains(got.GetError(), text) {
			t.Errorf("%s: got %v, %v; want it not open, with %q", address, got, err, text)
		}
	}
}

func TestWhatIsNotAsked(t *testing.T) {
	const invalid, refused = agentv1.FailureReason_FAILURE_REASON_INVALID, agentv1.FailureReason_FAILURE_REASON_REFUSED
	minute := durationpb.New(time.Minute + 1)
	for _, tt := range []struct {
		name   string
		http   *agentv1.ProbeHttpRequest
		tcp    *agentv1.ProbeTcpRequest
		reason agentv1.FailureReason
	}{
		{name: "file", http: &agentv1.ProbeHttpRequest{Url: "file:///etc/passwd"}, reason: invalid},
		{name: "no scheme", http: &agentv1.ProbeHttpRequest{Url: "app.test/healthz"}, reason: invalid},
		{name: "no host", http: &agentv1.ProbeHttpRequest{Url: "http:///healthz"}, reason: invalid},
		{name: "header in the host header", http: &agentv1.ProbeHttpRequest{Url: "http://a/", HostHeader: "a\r\nX: y"}, reason: invalid},
		{name: "long timeout", http: &agentv1.ProbeHttpRequest{Url: "http://a/", Timeout: minute}, reason: invalid},
		{name: "negative timeout", tcp: &agentv1.ProbeTcpRequest{Address: "a:1", Timeout: durationpb.New(-1)}, reason: invalid},
		{name: "no port", tcp: &agentv1.ProbeTcpRequest{Address: "a"}, reason: invalid},
		{name: "port 0", tcp: &agentv1.ProbeTcpRequest{Address: "a:0"}, reason: invalid},
		{name: "metadata", http: &agentv1.ProbeHttpRequest{Url: "http://169.254.169.254/latest/meta-data/"}, reason: refused},
		{name: "metadata by another spelling", http: &agentv1.ProbeHttpRequest{Url: "http://[::ffff:169.254.169.254]/"}, reason: refused},
		{name: "metadata by IPv6", tcp: &agentv1.ProbeTcpRequest{Address: "[fd00:ec2::254]:80"}, reason: refused},
		{name: "metadata of Azure", tcp: &agentv1.ProbeTcpRequest{Address: "168.63.129.16:80"}, reason: refused},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var err error
			if tt.http != nil {
				_, err = probe.Prober{}.HTTP(t.Context(), tt.http)
			} else {
				_, err = probe.Prober{}.TCP(t.Context(), tt.tcp)
			}
			if f, ok := rpcerr.Failure(err); !ok || f.GetReason() != tt.reason || !f.GetPermanent() {
				t.Errorf("got %v, want a permanent %s", err, tt.reason)
			}
		})
	}
}

// TestCallThatEnds: only the target's silence is an answer, the caller's is not.
func TestCallThatEnds(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(target))
	defer s.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := probe.Prober{}.HTTP(ctx, &agentv1.ProbeHttpRequest{Url: s.URL + "/slow"})
	if _, definite := rpcerr.Failure(err); definite || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want the end of the call", err)
	}
}
