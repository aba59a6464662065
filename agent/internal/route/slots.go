package route

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

const (
	// minSlots can be shared evenly by up to six, and by ten, twelve and fifteen upstreams.
	minSlots = 60
	// nobody is what the slots of a route without upstreams hold: nothing listens on port 0, so the proxy answers 502.
	nobody = "127.0.0.1:0"
	// upstreamsFile of a generation lists them, one a line.
	upstreamsFile = "upstreams"
	// modeFile of a generation says whether the proxy leads requests to the upstreams or shows pageFile.
	modeFile = "mode"
	// serving and maintained are what a modeFile holds.
	serving, maintained = "serving", "maintenance"
	// pageFile of a route outlives its generations: a request that met the one before may still read it.
	pageFile = "page"
	// currentLink leads to the generation in force.
	currentLink = "current"
	// probeFile is what the proxy is asked for, to prove that it reads this folder.
	probeFile = "probe"
)

// slots is a folder of small files from which the proxy reads, for each request, where to send it. So a change of upstreams needs no
// reload of its configuration, which would cut off the connections that it has just accepted.
//
// Each route has a folder. In it, every generation is a folder of its own with one file per slot, and the link "current" leads to one of
// them: a change is one rename, and lasts through a crash.
type slots struct {
	dir string
}

// slot is the path of one slot of a route, as the proxy reads it.
func (s slots) slot(route string, n int) string {
	return filepath.Join(s.dir, route, currentLink, strconv.Itoa(n))
}

// notice is how the proxy is told to show a page instead of what the slots of a route lead to.
func (s slots) notice(route string) *notice {
	return &notice{
		mode: "{file." + filepath.Join(s.dir, route, currentLink, modeFile) + "}",
		body: "{file." + filepath.Join(s.dir, route, pageFile) + "}",
	}
}

// shows says that a route shows its page.
func (s slots) shows(route string) (bool, error) {
	mode, err := os.ReadFile(filepath.Join(s.dir, route, currentLink, modeFile))
	if errors.Is(err, fs.ErrNotExist) { // of a route that is not in slots, or of an agent that knew no pages.
		return false, nil
	}
	return string(mode) == maintained, err
}

// writePage makes the page that a route shows. A request gets the one before or this one, whole.
func (s slots) writePage(route, page string) error {
	path := filepath.Join(s.dir, route, pageFile)
	if had, err := os.ReadFile(path); err == nil && string(had) == page {
		return nil
	}
	if err := s.makeDir(filepath.Dir(path)); err != nil {
		return err
	}
	next := path + ".next"
	if err := os.Remove(next); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := writeFile(next, page); err != nil {
		return err
	}
	if err := os.Rename(next, path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// probe is the path of the file that the proxy repeats.
func (s slots) probe() string { return filepath.Join(s.dir, probeFile) }

// read returns the upstreams of a route and the number of its slots; 0 if it has none.
func (s slots) read(route string) ([]string, int, error) {
	text, err := os.ReadFile(filepath.Join(s.dir, route, currentLink, upstreamsFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0, nil
	}
	if err != nil {
		return nil, 0, err
	}
	entries, err := os.ReadDir(filepath.Join(s.dir, route, currentLink))
	if err != nil {
		return nil, 0, err
	}
	n := 0
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err == nil {
			n++
		}
	}
	return strings.Fields(string(text)), n, nil
}

// write makes a generation with these upstreams, behind the route's page if it shows that, and puts it in force. It returns the number of its
// slots, at least atLeast.
func (s slots) write(route string, upstreams []string, atLeast int, page bool) (int, error) {
	n := max(minSlots, atLeast)
	for n < len(upstreams) {
		n *= 2
	}
	home := filepath.Join(s.dir, route)
	if err := s.makeDir(home); err != nil {
		return 0, err
	}
	before, err := os.Readlink(filepath.Join(home, currentLink))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	dir, err := os.MkdirTemp(home, "g")
	if err != nil {
		return 0, err
	}
	if err := fill(dir, upstreams, n, page); err != nil {
		return 0, errors.Join(err, os.RemoveAll(dir))
	}
	if err := s.enforce(home, filepath.Base(dir)); err != nil {
		return 0, errors.Join(err, os.RemoveAll(dir))
	}
	// A request may be between the old link and its slot: the generation before stays until the next change.
	return n, tidy(home, filepath.Base(dir), before)
}

// fill writes each upstream once; the slots are links to it, so that few files need to reach the disk.
func fill(dir string, upstreams []string, n int, page bool) error {
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	mode := serving
	if page {
		mode = maintained
	}
	if err := writeFile(filepath.Join(dir, modeFile), mode); err != nil {
		return err
	}
	if err := writeFile(filepath.Join(dir, upstreamsFile), strings.Join(upstreams, "\n")); err != nil {
		return err
	}
	targets := upstreams
	if len(targets) == 0 {
		targets = []string{nobody}
	}
	for i := range n {
		path := filepath.Join(dir, strconv.Itoa(i))
		if i < len(targets) {
			if err := writeFile(path, targets[i]); err != nil {
				return err
			}
			continue
		}
		if err := os.Link(filepath.Join(dir, strconv.Itoa(i%len(targets))), path); err != nil {
			return err
		}
	}
	return syncDir(dir)
}

// enforce makes a generation the current one.
func (s slots) enforce(home, generation string) error {
	next := filepath.Join(home, "next")
	if err := os.Remove(next); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Symlink(generation, next); err != nil {
		return err
	}
	if err := os.Rename(next, filepath.Join(home, currentLink)); err != nil {
		return err
	}
	return syncDir(home)
}

// tidy removes the generations but those to keep.
func tidy(home string, keep ...string) error {
	entries, err := os.ReadDir(home)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() && !slices.Contains(keep, e.Name()) {
			if err := os.RemoveAll(filepath.Join(home, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// challenge writes a value that the proxy must repeat.
func (s slots) challenge(value string) error {
	if err := s.makeDir(s.dir); err != nil {
		return err
	}
	next := s.probe() + ".next"
	if err := os.WriteFile(next, []byte(value), 0o644); err != nil {
		return err
	}
	if err := os.Chmod(next, 0o644); err != nil { // whatever the umask.
		return err
	}
	return os.Rename(next, s.probe())
}

// makeDir makes a folder, s.dir or one in it, that the proxy can read, whoever it runs as and whatever the agent's umask is. It opens folders
// that it makes and those that an agent made before; others are left as they are.
func (s slots) makeDir(dir string) error {
	var ours []string
	for d := dir; d != filepath.Dir(d); d = filepath.Dir(d) {
		_, err := os.Stat(d)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("folder for upstreams: %w", err)
		}
		if err != nil || d == s.dir || d == defaultDir || filepath.Dir(d) == s.dir {
			ours = append(ours, d)
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("folder for upstreams: %w", err)
	}
	for _, d := range ours {
		if err := openDir(d); err != nil {
			return fmt.Errorf("folder for upstreams: %w", err)
		}
	}
	return nil
}

// openDir lets everybody read a folder of the agent's own user.
func openDir(dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	if info.Mode().Perm()&0o755 == 0o755 || !ok || int(owner.Uid) != os.Geteuid() {
		return nil
	}
	return os.Chmod(dir, info.Mode().Perm()|0o755)
}

func writeFile(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	if err == nil {
		err = f.Chmod(0o644)
	}
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
