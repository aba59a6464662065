package fleet

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// FakeEngine is an engine without containers, for tests that need thousands of operations: what it does is lines of a file.
type FakeEngine struct {
	*Engine
	file string
}

// Effect is a line of that file.
type Effect struct {
	// At is the time in nanoseconds.
	At int64
	// Action is create, start, die, destroy, policy or network.
	Action string
	// ID of the container.
	ID string
	// Name of the container.
	Name string
	// Body of the call.
	Body json.RawMessage
}

// Time of the effect.
func (e Effect) Time() time.Time { return time.Unix(0, e.At) }

// StartFakeEngine starts a fake engine that has the images, repository:tag each, and returns when it answers.
func (f *Fleet) StartFakeEngine(ctx context.Context, program, name string, ready time.Duration, env []string, images ...string) (*FakeEngine, error) {
	dir, err := f.path(name)
	if err != nil {
		return nil, err
	}
	e := &FakeEngine{Engine: &Engine{Socket: filepath.Join(dir, "docker.sock"), pidFile: filepath.Join(dir, "none")}, file: filepath.Join(dir, "effects")}
	e.API = NewAPI(e.Socket)
	e.process, err = f.Start(Command{Name: name, Path: program, Env: env, Args: []string{
		"-socket", e.Socket, "-effects", e.file, "-images", strings.Join(images, ","), "-ready", ready.String(),
	}})
	if err != nil {
		return nil, err
	}
	return e, e.Ready(ctx)
}

// Effects of the engine so far, in order.
func (e *FakeEngine) Effects() ([]Effect, error) {
	data, err := os.ReadFile(e.file)
	if err != nil {
		return nil, err
	}
	var effects []Effect
	for line := range bytes.Lines(data[:bytes.LastIndexByte(data, '\n')+1]) {
		var f Effect
		if err := json.Unmarshal(line, &f); err != nil {
			return nil, err
		}
		effects = append(effects, f)
	}
	return effects, nil
}
