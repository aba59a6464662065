package simulation

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

const (
	// heldFor is how long the wire keeps a message that cannot pass. What is held longer is lost, and its caller hears of a broken connection.
	heldFor = 15 * time.Second
	latency = 400 * time.Microsecond
)

// wire connects coordinators and hosts by their names. A direction that is cut holds its messages, as TCP does: they arrive late or not at all.
type wire struct {
	work sync.WaitGroup            // everything that carries a message
	done chan struct{}             // closed at the end: nothing passes any more
	gate func(from, method string) // is asked before every call to a host, by who calls; nil for nobody

	mu        sync.Mutex
	rng       *rand.Rand
	changed   chan struct{} // closed and replaced when a direction is cut or healed
	cut       map[[2]string]bool
	slow      map[[2]string]time.Duration
	listeners map[string]*listener
	losing    float64 // share of the answers of hosts that are lost
	doubling  float64 // share of the requests to hosts that arrive twice
}

func newWire(rng *rand.Rand) *wire {
	return &wire{
		rng: rng, done: make(chan struct{}), changed: make(chan struct{}), cut: map[[2]string]bool{}, slow: map[[2]string]time.Duration{},
		listeners: map[string]*listener{},
	}
}

// set changes directions all at once: "*" means everybody.
func (w *wire) set(from, to []string, cut bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, f := range from {
		for _, t := range to {
			if cut && f != t {
				w.cut[[2]string{f, t}] = true
			} else {
				delete(w.cut, [2]string{f, t})
			}
		}
	}
	close(w.changed)
	w.changed = make(chan struct{})
}

func (w *wire) delay(from, to string, d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.slow[[2]string{from, to}] = d
}

// heal lets everything pass again, at its usual speed.
func (w *wire) heal() {
	w.mu.Lock()
	defer w.mu.Unlock()
	clear(w.cut)
	clear(w.slow)
	w.losing, w.doubling = 0, 0
	close(w.changed)
	w.changed = make(chan struct{})
}

func (w *wire) look(from, to string) (cut bool, delay time.Duration, changed <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	pair := [2]string{from, to}
	return w.cut[pair], latency + time.Duration(w.rng.Int64N(int64(latency))) + w.slow[pair], w.changed
}

// pass waits until a message may pass; false means that it is lost.
func (w *wire) pass(from, to string) bool {
	timer := time.NewTimer(heldFor)
	defer timer.Stop()
	for {
		cut, delay, changed := w.look(from, to)
		if !cut {
			timer.Reset(delay)
			select {
			case <-timer.C:
				return true
			case <-w.done:
				return false
			}
		}
		select {
		case <-changed:
		case <-timer.C:
			return false
		case <-w.done:
			return false
		}
	}
}

// call carries a request to whoever serves it and the answer back. A request that was held arrives late even if its sender has given up.
func (w *wire) call(ctx context.Context, from, to string, serve func(context.Context) (proto.Message, error)) (proto.Message, error) {
	type answer struct {
		message proto.Message
		err     error
	}
	answers := make(chan answer, 1)
	broken := answer{err: status.Error(codes.Unavailable, "the connection broke")}
	w.work.Go(func() {
		if !w.pass(from, to) {
			answers <- broken
			return
		}
		serving := ctx
		if ctx.Err() != nil {
			late, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
			defer cancel()
			serving = late
		}
		message, err := serve(serving)
		if !w.pass(to, from) {
			answers <- broken
			return
		}
		answers <- answer{message, err}
	})
	select {
	case a := <-answers:
		return a.message, a.err
	case <-ctx.Done():
		return nil, status.FromContextError(ctx.Err()).Err()
	}
}

// place is a name as a network address.
type place string

func (p place) Network() string { return "sim" }
func (p place) String() string  { return string(p) }

// listener takes connections for one incarnation of a coordinator.
type listener struct {
	wire   *wire
	name   string
	conns  chan *stream
	closed chan struct{}
	once   sync.Once
}

func (w *wire) listen(name string) *listener {
	l := &listener{wire: w, name: name, conns: make(chan *stream, 64), closed: make(chan struct{})}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.listeners[name] = l
	return l
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *listener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *listener) Addr() net.Addr { return place(l.name) }

// dial connects to a coordinator that listens.
func (w *wire) dial(ctx context.Context, from, to string) (net.Conn, error) {
	var mine *stream
	_, err := w.call(ctx, from, to, func(context.Context) (proto.Message, error) {
		w.mu.Lock()
		l := w.listeners[to]
		w.mu.Unlock()
		there, back := newLane(w, from, to), newLane(w, to, from)
		if l == nil {
			return nil, errors.New("connection refused")
		}
		select {
		case <-l.closed:
			return nil, errors.New("connection refused")
		case l.conns <- &stream{in: there, out: back}:
			mine = &stream{in: back, out: there}
			return nil, nil
		}
	})
	if err != nil {
		return nil, err
	}
	return mine, nil
}

// stream is one end of a connection.
type stream struct{ in, out *lane }

func (s *stream) Read(p []byte) (int, error)         { return s.in.read(p) }
func (s *stream) Write(p []byte) (int, error)        { return s.out.write(p) }
func (s *stream) LocalAddr() net.Addr                { return place(s.out.from) }
func (s *stream) RemoteAddr() net.Addr               { return place(s.out.to) }
func (s *stream) SetReadDeadline(t time.Time) error  { return s.in.setDeadline(t) }
func (s *stream) SetWriteDeadline(_ time.Time) error { return nil }
func (s *stream) SetDeadline(t time.Time) error      { return s.in.setDeadline(t) }

func (s *stream) Close() error {
	s.in.leave()
	s.out.end()
	return nil
}

// chunk is what one write put on a lane, and when it arrives.
type chunk struct {
	at   time.Time
	data []byte
}

// lane is one direction of a connection. Writing never waits: the buffers of the simulation have no end.
type lane struct {
	wire     *wire
	from, to string

	mu       sync.Mutex
	chunks   []chunk
	last     time.Time // when the newest chunk arrives
	ended    bool      // by the writer
	left     bool      // by the reader
	deadline time.Time
	wake     chan struct{} // closed and replaced at every change
}

func newLane(w *wire, from, to string) *lane {
	return &lane{wire: w, from: from, to: to, wake: make(chan struct{})}
}

// changed runs an edit and wakes the reader.
func (l *lane) change(edit func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	edit()
	close(l.wake)
	l.wake = make(chan struct{})
}

func (l *lane) end()   { l.change(func() { l.ended = true }) }
func (l *lane) leave() { l.change(func() { l.left = true }) }

func (l *lane) setDeadline(t time.Time) error {
	l.change(func() { l.deadline = t })
	return nil
}

func (l *lane) write(p []byte) (int, error) {
	_, delay, _ := l.wire.look(l.from, l.to)
	failed := false
	l.change(func() {
		if failed = l.ended || l.left; failed {
			return
		}
		if at := time.Now().Add(delay); at.After(l.last) {
			l.last = at
		}
		l.chunks = append(l.chunks, chunk{at: l.last, data: append([]byte(nil), p...)})
	})
	if failed {
		return 0, io.ErrClosedPipe
	}
	return len(p), nil
}

func (l *lane) read(p []byte) (int, error) {
	for {
		cut, _, wired := l.wire.look(l.from, l.to)
		n, wait, wake, err := l.take(p, cut)
		if n > 0 || err != nil {
			return n, err
		}
		var passed <-chan time.Time
		var timer *time.Timer
		if wait > 0 {
			timer = time.NewTimer(wait)
			passed = timer.C
		}
		select {
		case <-wake:
		case <-wired:
		case <-passed:
		case <-l.wire.done:
			return 0, net.ErrClosed
		}
		if timer != nil {
			timer.Stop()
		}
	}
}

// take returns what has arrived, or how long to wait at most for something to happen by itself; 0 for ever.
func (l *lane) take(p []byte, cut bool) (n int, wait time.Duration, wake <-chan struct{}, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	switch {
	case l.left:
		return 0, 0, nil, net.ErrClosed
	case !l.deadline.IsZero() && !now.Before(l.deadline):
		return 0, 0, nil, os.ErrDeadlineExceeded
	case !cut && len(l.chunks) > 0 && !now.Before(l.chunks[0].at):
		first := &l.chunks[0]
		n = copy(p, first.data)
		if first.data = first.data[n:]; len(first.data) == 0 {
			l.chunks = l.chunks[1:]
		}
		return n, 0, nil, nil
	case !cut && l.ended && len(l.chunks) == 0:
		return 0, 0, nil, io.EOF
	}
	if !l.deadline.IsZero() {
		wait = l.deadline.Sub(now)
	}
	if !cut && len(l.chunks) > 0 {
		if due := l.chunks[0].at.Sub(now); wait == 0 || due < wait {
			wait = due
		}
	}
	return 0, wait, l.wake, nil
}
