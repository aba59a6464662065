// Package probe asks something else, from this host, how it is: a URL, or an address that takes connections. It owns what may be asked and how
// much of an answer is told. What an answer means is left to the coordinator, and the gates of containers to package container.
//
// It is the coordinator that asks, whose word the host takes anyway; but what is asked for comes from procedures, and the answer's body ends up
// before whoever may read a run. So the addresses that hand a cloud's credentials to any process of the host are refused, whatever name
// leads there. The host's own network and its loopback are not: to see them from here is what a probe is for.
package probe

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/spheroseg/muster/internal/rpcerr"
	agentv1 "github.com/spheroseg/muster/proto/gen/muster/agent/v1"
)

const (
	defaultTimeout = 5 * time.Second
	maxTimeout     = time.Minute
	// maxBody is what the contract allows in ProbeHttpResponse.body.
	maxBody = 1024
)

// errMetadata is why a connection was not even tried.
var errMetadata = errors.New("it gives a cloud's credentials to any process of this host")

// Prober sends probes. Its zero value is ready, and may be used from many goroutines.
type Prober struct{}

// HTTP asks a URL and does not follow redirects. A target that does not answer is an answer.
func (Prober) HTTP(ctx context.Context, req *agentv1.ProbeHttpRequest) (*agentv1.ProbeHttpResponse, error) {
	target, err := url.Parse(req.GetUrl())
	if err != nil || target.Scheme != "http" && target.Scheme != "https" || target.Hostname() == "" {
		return nil, invalid("url %q: use http://HOST[:PORT]/PATH or https://HOST[:PORT]/PATH", req.GetUrl())
	}
	if strings.ContainsAny(req.GetHostHeader(), "/\\ \t\r\n@") {
		return nil, invalid("host_header %q is no host name", req.GetHostHeader())
	}
	limit, err := timeout(req.GetTimeout())
	if err != nil {
		return nil, err
	}
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	call, err := http.NewRequestWithContext(limited, http.MethodGet, target.String(), nil)
	if err != nil {
		return nil, invalid("url %q: %s", req.GetUrl(), err)
	}
	call.Header.Set("User-Agent", "muster-agent")
	transport := &http.Transport{
		DialContext: dialer().DialContext, DisableKeepAlives: true,
		TLSClientConfig: &tls.Config{InsecureSkipVerify: req.GetInsecure()}, //nolint:gosec // asked for: the certificate is not what is probed.
	}
	if host := req.GetHostHeader(); host != "" {
		call.Host = host
		if name, _, err := net.SplitHostPort(host); err == nil {
			host = name
		}
		transport.TLSClientConfig.ServerName = host // a server of several names answers by the one that is meant.
	}
	client := &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	began := time.Now()
	resp, err := client.Do(call)
	latency := durationpb.New(time.Since(began))
	if err != nil {
		if err := verdict(ctx, err, req.GetUrl()); err != nil {
			return nil, err
		}
		return &agentv1.ProbeHttpResponse{Latency: latency, Error: cause(err, limit)}, nil
	}
	defer resp.Body.Close()
	out := &agentv1.ProbeHttpResponse{Status: int32(resp.StatusCode), Latency: latency}
	// A few more bytes than are told, so that a character that is cut in two is not taken for a wrong one.
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBody+4))
	if err != nil {
		if ctx.Err() != nil {
			return nil, fmt.Errorf("probe %s: %w", req.GetUrl(), ctx.Err())
		}
		out.Error = "the body broke off: " + cause(err, limit)
	}
	out.Body = beginning(string(body))
	return out, nil
}

// TCP opens a connection and closes it. An address that takes none is an answer.
func (Prober) TCP(ctx context.Context, req *agentv1.ProbeTcpRequest) (*agentv1.ProbeTcpResponse, error) {
	host, port, err := net.SplitHostPort(req.GetAddress())
	if n, errPort := strconv.ParseUint(port, 10, 16); err != nil || errPort != nil || n == 0 || host == "" {
		return nil, invalid("address %q: use HOST:PORT", req.GetAddress())
	}
	limit, err := timeout(req.GetTimeout())
	if err != nil {
		return nil, err
	}
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	began := time.Now()
	conn, err := dialer().DialContext(limited, "tcp", req.GetAddress())
	out := &agentv1.ProbeTcpResponse{Open: err == nil, Latency: durationpb.New(time.Since(began))}
	if err != nil {
		if err := verdict(ctx, err, req.GetAddress()); err != nil {
			return nil, err
		}
		out.Error = cause(err, limit)
		return out, nil
	}
	return out, conn.Close()
}

func invalid(format string, args ...any) error {
	return rpcerr.Fail(agentv1.FailureReason_FAILURE_REASON_INVALID, true, format, args...)
}

func timeout(d *durationpb.Duration) (time.Duration, error) {
	switch t := d.AsDuration(); {
	case t == 0:
		return defaultTimeout, nil
	case t < 0 || t > maxTimeout:
		return 0, invalid("timeout %s: use more than 0 and at most %s", t, maxTimeout)
	default:
		return t, nil
	}
}

// dialer looks at the address that a name led to, at the last moment: a name may lead elsewhere each time that it is asked for.
func dialer() *net.Dialer {
	return &net.Dialer{Control: func(_, address string, _ syscall.RawConn) error {
		at, err := netip.ParseAddrPort(address)
		if err != nil {
			return fmt.Errorf("address %q: %w", address, err)
		}
		if metadata(at.Addr()) {
			return fmt.Errorf("%s is not asked: %w", at.Addr(), errMetadata)
		}
		return nil
	}}
}

// metadata says that an address is that of a cloud's metadata service. Most use the link-local network.
func metadata(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	return a.IsLinkLocalUnicast() || slices.Contains([]string{
		"fd00:ec2::254",   // Amazon, by IPv6.
		"100.100.100.200", // Alibaba.
		"168.63.129.16",   // Azure.
	}, a.String())
}

// verdict returns the error that is no answer: a refusal, or the end of the call.
func verdict(ctx context.Context, err error, target string) error {
	switch {
	case errors.Is(err, errMetadata):
		return rpcerr.Fail(agentv1.FailureReason_FAILURE_REASON_REFUSED, true, "probe of %s is refused: %s", target, cause(err, 0))
	case ctx.Err() != nil:
		return fmt.Errorf("probe %s: %w", target, ctx.Err())
	default:
		return nil
	}
}

// cause leaves out what the caller knows: method, address, and the words of the layers in between.
func cause(err error, limit time.Duration) string {
	var dns *net.DNSError
	var op *net.OpError
	var wrapped *url.Error
	var text string
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		text = fmt.Sprintf("no answer within %s", limit)
	case errors.As(err, &dns):
		text = fmt.Sprintf("name %s: %s", dns.Name, dns.Err)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		text = "the connection was closed without an answer"
	case errors.As(err, &op):
		text = op.Err.Error()
	case errors.As(err, &wrapped):
		text = wrapped.Err.Error()
	default:
		text = err.Error()
	}
	return strings.ToValidUTF8(strings.ReplaceAll(text, "\n", " "), "?")
}

// beginning returns as much of a text as is told, as valid UTF-8.
func beginning(text string) string {
	out := make([]byte, 0, maxBody)
	for _, r := range text { // bytes that are no character become one that stands for them.
		if len(out)+len(string(r)) > maxBody {
			break
		}
		out = append(out, string(r)...)
	}
	return string(out)
}
