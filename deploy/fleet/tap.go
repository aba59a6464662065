package fleet

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"strings"
	"sync"
)

// Tap stands between an engine's socket and those who connect to it, so that a test can do something exactly between two of their calls.
type Tap struct {
	engine   *Engine
	moved    string // where the engine's own socket is meanwhile
	server   *http.Server
	stop     context.CancelFunc // lets go of the calls that are held
	arrivals chan string
	once     sync.Once
}

// Tap holds every call of the method on a path with the ending from now on: none reaches the engine any more. The rest passes. Connections from before the
// tap pass it by: whoever is to be held connects after.
func (e *Engine) Tap(method, ending string) (*Tap, error) {
	t := &Tap{engine: e, moved: e.Socket + ".tapped", arrivals: make(chan string, 16)}
	if err := os.Rename(e.Socket, t.moved); err != nil {
		return nil, err
	}
	listener, err := net.Listen("unix", e.Socket)
	if err != nil {
		return nil, errors.Join(err, os.Rename(t.moved, e.Socket))
	}
	ctx, stop := context.WithCancel(context.Background())
	t.stop = stop
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: "engine"})
	proxy.FlushInterval = -1
	proxy.Transport = &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", t.moved)
	}}
	// As an engine that is gone would do it.
	proxy.ErrorHandler = func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) }
	t.server = &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != method || !strings.HasSuffix(r.URL.Path, ending) {
			proxy.ServeHTTP(w, r)
			return
		}
		select {
		case t.arrivals <- r.URL.Path:
		default:
		}
		select {
		case <-r.Context().Done():
		case <-ctx.Done():
		}
		panic(http.ErrAbortHandler)
	})}
	go func() { _ = t.server.Serve(listener) }()
	return t, nil
}

// Held gives the paths of the calls that are held, one each as they arrive.
func (t *Tap) Held() <-chan string { return t.arrivals }

// Close lets the callers reach the engine again; calls that are held end without an answer.
func (t *Tap) Close() error {
	var err error
	t.once.Do(func() {
		t.stop()
		err = errors.Join(t.server.Close(), os.Rename(t.moved, t.engine.Socket)) // closing the listener removes its socket
	})
	return err
}
