// Package load sends a constant stream of requests to one address and counts what became of them. It owns the sending and the counting, and leaves
// to its callers what runs meanwhile and which counts are good enough.
//
// The load is open-loop: a request is sent when its time has come, whether or not earlier ones were answered, so that a service that stalls shows as
// failures and latency and not as less load.
package load

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	errorTexts   = 8         // of the first failures, kept for the report
	maxInFlight  = 4096      // beyond which requests count as failed instead of piling up
	maxLatencies = 4_000_000 // after which latencies are no longer kept
)

// Options of a load. URL is required.
type Options struct {
	// URL asked for with GET. Its host must be a loopback, private or link-local address: this is no tool against somebody else's service.
	URL string
	// Rate of requests per second; default 200.
	Rate int
	// Timeout of one request; default 2 s.
	Timeout time.Duration
	// KeepAlive reuses connections; otherwise every request opens its own.
	KeepAlive bool
	// Limit ends the load by itself; default 10 minutes.
	Limit time.Duration
}

// Load counts requests while Run sends them. It may be read at any time.
type Load struct {
	opts   Options
	client *http.Client

	mu        sync.Mutex
	done      int
	failed    int
	inFlight  int
	errs      []string
	versions  map[string]int
	latencies []time.Duration
}

// Report is what was counted between the start, or the last Reset, and now.
type Report struct {
	// Total requests that ended.
	Total int
	// Failed requests: no answer, or a status other than 2xx.
	Failed int
	// Errors of the first failures, each with its time.
	Errors []string
	// P50 latency of the requests that were answered.
	P50 time.Duration
	// P99 latency of the requests that were answered.
	P99 time.Duration
	// Versions seen in the header X-Version, by number of answers.
	Versions map[string]int
}

// New returns a load that Run starts.
func New(opts Options) (*Load, error) {
	if opts.Rate <= 0 {
		opts.Rate = 200
	}
	if opts.Timeout <= 0 {
		opts.Timeout = 2 * time.Second
	}
	if opts.Limit <= 0 {
		opts.Limit = 10 * time.Minute
	}
	if err := private(opts.URL); err != nil {
		return nil, err
	}
	transport := &http.Transport{
		DisableKeepAlives:   !opts.KeepAlive,
		MaxIdleConnsPerHost: 256,
		DialContext:         (&net.Dialer{Timeout: opts.Timeout}).DialContext,
	}
	return &Load{
		opts:     opts,
		client:   &http.Client{Transport: transport, Timeout: opts.Timeout},
		versions: map[string]int{},
	}, nil
}

func private(text string) error {
	u, err := url.Parse(text)
	if err != nil {
		return fmt.Errorf("load: %w", err)
	}
	addr, err := netip.ParseAddr(u.Hostname())
	if err != nil {
		return fmt.Errorf("load: host %q: give an IP address: %w", u.Hostname(), err)
	}
	if !addr.IsLoopback() && !addr.IsPrivate() && !addr.IsLinkLocalUnicast() {
		return fmt.Errorf("load: %s is a public address: only loopback and private ones may be loaded", addr)
	}
	return nil
}

// Run sends requests until ctx ends or the limit passes, then waits for those in flight. It may be called once.
func (l *Load) Run(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, l.opts.Limit)
	defer cancel()
	defer l.client.CloseIdleConnections()
	var wg sync.WaitGroup
	defer wg.Wait()
	start := time.Now()
	tick := time.NewTicker(max(time.Second/time.Duration(l.opts.Rate), time.Millisecond))
	defer tick.Stop()
	for sent := 0; ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		// A late tick sends what has become due meanwhile: the rate holds on a busy machine, too.
		for due := int(time.Since(start).Seconds() * float64(l.opts.Rate)); sent < due; sent++ {
			if l.begin() {
				wg.Go(l.request)
			}
		}
	}
}

func (l *Load) begin() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.inFlight >= maxInFlight {
		l.count(0, "", fmt.Errorf("%d requests are waiting for an answer already", maxInFlight))
		return false
	}
	l.inFlight++
	return true
}

// request is bounded by the client's timeout and not by the context of Run, so that the end of the load does not count as a failure.
func (l *Load) request() {
	start := time.Now()
	version, err := l.get()
	took := time.Since(start)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.inFlight--
	l.count(took, version, err)
}

func (l *Load) get() (string, error) {
	resp, err := l.client.Get(l.opts.URL)
	if err != nil {
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err
		}
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	version := resp.Header.Get("X-Version")
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return version, fmt.Errorf("status %s %s", resp.Status, strings.TrimSpace(string(body[:min(len(body), 80)])))
	}
	return version, err
}

// count is called with mu held.
func (l *Load) count(took time.Duration, version string, err error) {
	l.done++
	if err != nil {
		l.failed++
		if len(l.errs) < errorTexts {
			l.errs = append(l.errs, time.Now().Format("15:04:05.000 ")+err.Error())
		}
		return
	}
	l.versions[version]++
	if len(l.latencies) < maxLatencies {
		l.latencies = append(l.latencies, took)
	}
}

// Report returns the counts since the start or the last Reset.
func (l *Load) Report() Report {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := Report{Total: l.done, Failed: l.failed, Errors: slices.Clone(l.errs), Versions: make(map[string]int, len(l.versions))}
	for v, n := range l.versions {
		r.Versions[v] = n
	}
	sorted := slices.Clone(l.latencies)
	slices.Sort(sorted)
	if n := len(sorted); n > 0 {
		r.P50, r.P99 = sorted[n/2], sorted[min(n-1, n*99/100)]
	}
	return r
}

// Counts returns total and failed without the cost of a whole report.
func (l *Load) Counts() (total, failed int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.done, l.failed
}

// Reset starts the counts anew, so that one load can be reported act by act. Requests in flight count for what comes after.
func (l *Load) Reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.done, l.failed = 0, 0
	l.errs, l.latencies = nil, nil
	l.versions = map[string]int{}
}

// String is one line for a report.
func (r Report) String() string {
	versions := make([]string, 0, len(r.Versions))
	for v, n := range r.Versions {
		versions = append(versions, fmt.Sprintf("%s×%d", v, n))
	}
	slices.Sort(versions)
	return fmt.Sprintf("%d requests, %d failed, p50 %s, p99 %s, answered by %s", r.Total, r.Failed,
		r.P50.Round(100*time.Microsecond), r.P99.Round(100*time.Microsecond), strings.Join(versions, " "))
}
