// Command server is what the tests run in containers: a small HTTP service that becomes ready, answers slowly, exits or hangs as told.
package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "check" {
		check()
	}
	if len(os.Args) > 1 && os.Args[1] == "hang" {
		wait()
	}
	if len(os.Args) > 1 && os.Args[1] == "job" {
		job()
	}
	if len(os.Args) > 1 && os.Args[1] == "count" {
		count()
	}
	fmt.Println("server starts")
	if d := duration("EXIT_AFTER"); d > 0 {
		time.AfterFunc(d, func() {
			fmt.Fprintln(os.Stderr, "fatal: cannot reach the database")
			os.Exit(number("EXIT_CODE"))
		})
	}
	if os.Getenv("NO_LISTEN") != "" {
		wait()
		return
	}
	began, ready := time.Now(), duration("READY_AFTER")
	unready := duration("UNREADY_AFTER")
	http.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) {
		age := time.Since(began)
		if age < ready || unready > 0 && age > unready {
			http.Error(w, "warming up", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok", os.Getenv("VERSION"))
	})
	http.HandleFunc("/slow", func(w http.ResponseWriter, r *http.Request) {
		d, err := time.ParseDuration(r.URL.Query().Get("for"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		time.Sleep(d)
		fmt.Fprintln(w, "done")
	})
	http.HandleFunc("/file", file)
	l, err := net.Listen("tcp", ":8080")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	go http.Serve(l, nil)
	wait()
}

// job leaves a line in a file for each time that it runs, works for a while, and ends as told.
func job() {
	record("/work/runs", "run\n")
	fmt.Println("job starts")
	if os.Getenv("EAT") != "" {
		var eaten [][]byte
		for {
			b := make([]byte, 1<<20)
			for i := range b {
				b[i] = 1
			}
			eaten = append(eaten, b)
		}
	}
	term := make(chan os.Signal, 1)
	if os.Getenv("DEAF") != "" {
		signal.Ignore(syscall.SIGTERM)
	} else {
		signal.Notify(term, syscall.SIGTERM)
	}
	select {
	case <-time.After(duration("WORK")):
		fmt.Println(os.Getenv("SAY"))
		os.Exit(number("EXIT_CODE"))
	case <-term:
		fmt.Println("job was told to stop")
		os.Exit(0)
	}
}

// count leaves a line in a file for each signal that it gets.
func count() {
	got := make(chan os.Signal, 16)
	signal.Notify(got, syscall.SIGHUP, syscall.SIGUSR1, syscall.Signal(37))
	record("/work/signals", "ready\n")
	for s := range got {
		record("/work/signals", fmt.Sprintf("%d\n", s))
		if s == syscall.SIGUSR1 {
			os.Exit(3)
		}
	}
}

func record(path, text string) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err == nil {
		_, err = f.WriteString(text)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(99)
	}
	f.Close()
}

// wait returns on SIGTERM.
func wait() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	<-ctx.Done()
	time.Sleep(duration("STOP_AFTER"))
	os.Exit(number("STOP_CODE"))
}

// check is the health check: it passes when the service answers.
func check() {
	resp, err := http.Get("http://127.0.0.1:8080/healthz")
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	if resp.StatusCode != http.StatusOK {
		fmt.Println("answered", resp.StatusCode)
		os.Exit(1)
	}
	os.Exit(0)
}

// file tells what a file is like from within the container.
func file(w http.ResponseWriter, r *http.Request) {
	path := filepath.Clean(r.URL.Query().Get("path"))
	text, err := os.ReadFile(path)
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	info, err := os.Stat(path)
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	st := info.Sys().(*syscall.Stat_t)
	err = os.WriteFile(path, text, 0)
	fmt.Fprintf(w, "%d:%d %04o writable=%t %s", st.Uid, st.Gid, info.Mode().Perm(), err == nil, strings.TrimSpace(string(text)))
}

func duration(name string) time.Duration {
	d, err := time.ParseDuration(os.Getenv(name))
	if err != nil {
		return 0
	}
	return d
}

func number(name string) int {
	n, err := strconv.Atoi(os.Getenv(name))
	if err != nil {
		return 0
	}
	return n
}
