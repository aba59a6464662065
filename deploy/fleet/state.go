package fleet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	folderPrefix = "muster-fleet-"
	stateFile    = "fleet.json"
	killWait     = 10 * time.Second // for killed processes to be gone
)

// identity of a process: its id alone may have been given to another process since.
type identity struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // field 22 of /proc/PID/stat, in ticks since the boot
	What  string `json:"what"`
}

// record is the content of the state file: what there is to remove if nobody removes it in order.
type record struct {
	Name      string     `json:"name"`
	Owner     identity   `json:"owner"`
	Space     string     `json:"space"` // namespace of the process ids: in another one they mean nothing
	Kept      bool       `json:"kept"`
	Processes []identity `json:"processes"`
	Links     []string   `json:"links"`
	Cgroups   []string   `json:"cgroups"`
	Engines   []foreign  `json:"engines"`
	Folders   []string   `json:"folders"` // outside of the run folder
}

// foreign is an engine that the fleet found and did not start: only what bears the label is removed from it.
type foreign struct {
	Socket string   `json:"socket"`
	Label  string   `json:"label"`
	Images []string `json:"images"`
}

// state keeps the record on disk, ahead of what it tells of.
type state struct {
	dir string

	mu  sync.Mutex
	rec record
}

func newState(dir, name string) (*state, error) {
	space, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return nil, err
	}
	s := &state{dir: dir, rec: record{Name: name, Owner: identify(os.Getpid(), "owner"), Space: space}}
	return s, s.save()
}

// identify returns the zero identity for a process that is gone.
func identify(pid int, what string) identity {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return identity{}
	}
	// The name in parentheses may hold anything, so fields count from the last parenthesis; the start time is the 20th after it.
	fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
	if len(fields) < 20 || fields[0] == "Z" {
		return identity{}
	}
	start, err := strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		return identity{}
	}
	return identity{PID: pid, Start: start, What: what}
}

func (i identity) alive() bool {
	if i.PID == 0 {
		return false
	}
	now := identify(i.PID, i.What)
	return now.PID == i.PID && now.Start == i.Start
}

// save is called with mu held, or before the state is shared.
func (s *state) save() error {
	data, err := json.MarshalIndent(s.rec, "", "  ")
	if err != nil {
		return err
	}
	temp := filepath.Join(s.dir, stateFile+".new")
	if err := os.WriteFile(temp, data, 0o600); err != nil {
		return err
	}
	return os.Rename(temp, filepath.Join(s.dir, stateFile))
}

func (s *state) change(do func(*record)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	do(&s.rec)
	return s.save()
}

func (s *state) keep() error { return s.change(func(r *record) { r.Kept = true }) }

func (s *state) addProcess(pid int, what string) error {
	return s.change(func(r *record) {
		r.Processes = slices.DeleteFunc(r.Processes, func(p identity) bool { return !p.alive() })
		r.Processes = append(r.Processes, identify(pid, what))
	})
}

// clean removes everything that the record names, and the folder. It takes things that are gone already as they are.
func (s *state) clean(ctx context.Context, logger *slog.Logger) error {
	s.mu.Lock()
	rec := s.rec
	s.mu.Unlock()
	var errs []error
	// The latest first: programs before the machines that hold them.
	for i := len(rec.Processes) - 1; i >= 0; i-- {
		errs = append(errs, kill(ctx, rec.Processes[i]))
	}
	for _, e := range rec.Engines {
		errs = append(errs, e.clean(ctx))
	}
	for _, link := range rec.Links {
		errs = append(errs, deleteLink(link))
	}
	for _, group := range rec.Cgroups {
		errs = append(errs, removeCgroup(ctx, group))
	}
	for _, folder := range rec.Folders {
		errs = append(errs, os.RemoveAll(folder))
		_ = os.Remove(filepath.Dir(folder)) // unless somebody else has something in it
	}
	errs = append(errs, os.RemoveAll(s.dir))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("clean %s: %w", s.dir, err)
	}
	logger.Debug("fleet removed", "dir", s.dir)
	return nil
}

func kill(ctx context.Context, p identity) error {
	if !p.alive() {
		return nil
	}
	if err := syscall.Kill(p.PID, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("kill %s (%d): %w", p.What, p.PID, err)
	}
	ctx, cancel := context.WithTimeout(ctx, killWait)
	defer cancel()
	return Poll(ctx, 10*time.Millisecond, fmt.Sprintf("%s (%d) to end", p.What, p.PID), func() (bool, error) { return !p.alive(), nil })
}

// Sweep removes the fleets whose process died, and with kept also those that were left running on purpose. Fleets at work are left alone, and so are
// those of another process namespace, of which nobody here can tell whether they are at work.
func Sweep(ctx context.Context, logger *slog.Logger, kept bool) error {
	space, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return err
	}
	dirs, err := filepath.Glob(filepath.Join(os.TempDir(), folderPrefix+"*"))
	if err != nil {
		return err
	}
	var errs []error
	for _, dir := range dirs {
		data, err := os.ReadFile(filepath.Join(dir, stateFile))
		if errors.Is(err, os.ErrNotExist) {
			continue // somebody makes or removes it at this moment
		}
		s := &state{dir: dir}
		if err == nil {
			err = json.Unmarshal(data, &s.rec)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("left-over %s: %w", dir, err))
			continue
		}
		if s.rec.Space != space || s.rec.Owner.alive() || s.rec.Kept && !kept {
			continue
		}
		logger.Info("removing a left-over fleet", "dir", dir)
		errs = append(errs, s.clean(ctx, logger))
	}
	return errors.Join(errs...)
}
