// Package source collects what a stack is made from: the compose files, the local files that they name, and the variables
// that these use. It reads the files lightly, to know what to send; what they mean is decided by the coordinator.
package source

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// Limit is the size of all files together that a coordinator takes.
const Limit = 1 << 20

// maxDepth bounds how far files include and extend one another.
const maxDepth = 16

// Options say where to look.
type Options struct {
	// Files are the compose files in the order in which they are merged; empty looks for the default names.
	Files []string
	// EnvFiles replace the .env beside the first file.
	EnvFiles []string
	// Profiles that are active; empty takes those of COMPOSE_PROFILES.
	Profiles []string
	// ProjectDirectory replaces the folder of the first file. One that does not exist here is a folder of the hosts.
	ProjectDirectory string
	// Name of the stack; empty takes COMPOSE_PROJECT_NAME, then the file's own name, then that of the folder.
	Name string
	// WorkingDirectory to which relative names refer. Required.
	WorkingDirectory string
	// Env looks up a variable of the process, as os.LookupEnv does. Required.
	Env func(name string) (string, bool)
}

// Error is about an input file: what is wrong, where it is named, and what helps.
type Error struct {
	What, Cause, Hint string
}

// Error returns what and why in one line.
func (e *Error) Error() string {
	if e.Cause == "" {
		return e.What
	}
	return e.What + ": " + e.Cause
}

// collector gathers files. root is the folder to which their paths are relative.
type collector struct {
	options Options
	root    string
	out     *coordinatorv1.StackSource
	size    int64
	largest string
	most    int64
	// dotenv holds what .env defines, given what the files of --env-file define.
	dotenv, given map[string]string
	wanted        map[string]bool
	walked        map[string]bool
	named         bool
}

// Collect reads everything that the stack is made from.
func Collect(o Options) (*coordinatorv1.StackSource, error) {
	c := &collector{options: o, out: &coordinatorv1.StackSource{}, dotenv: map[string]string{}, given: map[string]string{},
		wanted: map[string]bool{}, walked: map[string]bool{}}
	files, err := c.composeFiles()
	if err != nil {
		return nil, err
	}
	if err := c.directories(files[0]); err != nil {
		return nil, err
	}
	if err := c.envFiles(); err != nil {
		return nil, err
	}
	c.profiles()
	for _, f := range files {
		path, err := c.add(f, place{file: "the command line", what: "-f"})
		if err != nil {
			return nil, err
		}
		c.out.ComposeFiles = append(c.out.ComposeFiles, path)
		if err := c.compose(f, c.root, "", 0); err != nil {
			return nil, err
		}
	}
	c.name()
	c.environment()
	return c.out, nil
}

// composeFiles returns the absolute names of the files to read.
func (c *collector) composeFiles() ([]string, error) {
	files := c.options.Files
	if len(files) == 0 {
		if list, ok := c.options.Env("COMPOSE_FILE"); ok && list != "" {
			separator := string(os.PathListSeparator)
			if s, ok := c.options.Env("COMPOSE_PATH_SEPARATOR"); ok && s != "" {
				separator = s
			}
			files = strings.Split(list, separator)
		}
	}
	if len(files) == 0 {
		return c.defaultFiles()
	}
	out := make([]string, 0, len(files))
	for _, f := range files {
		if f == "" || f == "-" {
			return nil, &Error{What: fmt.Sprintf("%q is not the name of a compose file", f), Hint: "musterctl stack apply -f FILE"}
		}
		out = append(out, c.absolute(f))
	}
	return out, nil
}

// defaultFiles looks for the default names in the working folder and then in those above it, as compose does.
func (c *collector) defaultFiles() ([]string, error) {
	start := c.options.WorkingDirectory
	if d := c.options.ProjectDirectory; d != "" && isDir(c.absolute(d)) {
		start = c.absolute(d)
	}
	for dir := start; ; dir = filepath.Dir(dir) {
		file, ok := firstOf(dir, "compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml")
		if ok {
			out := []string{file}
			if file, ok := firstOf(dir, "compose.override.yml", "compose.override.yaml",
				"docker-compose.override.yml", "docker-compose.override.yaml"); ok {
				out = append(out, file)
			}
			return out, nil
		}
		if dir == filepath.Dir(dir) {
			return nil, &Error{
				What:  "there is no compose file",
				Cause: "neither compose.yaml nor docker-compose.yml is in " + start + " or above it",
				Hint:  "musterctl stack apply -f FILE",
			}
		}
	}
}

func firstOf(dir string, names ...string) (string, bool) {
	for _, n := range names {
		if info, err := os.Stat(filepath.Join(dir, n)); err == nil && !info.IsDir() {
			return filepath.Join(dir, n), true
		}
	}
	return "", false
}

// directories settles the folder here and the one on the hosts, which differ only where the flag names one that is not here.
func (c *collector) directories(first string) error {
	c.root = filepath.Dir(first)
	c.out.ProjectDirectory = c.root
	flag := c.options.ProjectDirectory
	switch {
	case flag == "":
	case isDir(c.absolute(flag)):
		c.root = c.absolute(flag)
		c.out.ProjectDirectory = c.root
	case filepath.IsAbs(flag):
		c.out.ProjectDirectory = filepath.Clean(flag)
	default:
		return &Error{
			What:  fmt.Sprintf("project directory %q does not exist", flag),
			Cause: "one that exists only on the hosts must be an absolute path",
			Hint:  "--project-directory /PATH/ON/THE/HOSTS",
		}
	}
	return nil
}

// envFiles reads the variables that the compose files use. The .env beside them is sent as it is; what --env-file names takes
// its place, and is not a file of the stack: its variables are sent like those of the process.
func (c *collector) envFiles() error {
	if len(c.options.EnvFiles) == 0 {
		file := filepath.Join(c.root, ".env")
		if info, err := os.Stat(file); err != nil || info.IsDir() {
			return nil
		}
		path, err := c.add(file, place{})
		if err != nil {
			return err
		}
		c.define(c.content(path), c.dotenv)
		return nil
	}
	for _, name := range c.options.EnvFiles {
		raw, err := os.ReadFile(c.absolute(name))
		if err != nil {
			return &Error{What: "file " + c.absolute(name) + " cannot be read", Cause: join(plain(err), "it is named by --env-file")}
		}
		c.define(string(raw), c.given)
	}
	return nil
}

// define learns what the text of a file of variables defines and which variables it uses itself.
func (c *collector) define(text string, into map[string]string) {
	c.want(text)
	parseEnv(text, into, c.lookup)
}

func (c *collector) absolute(path string) string {
	if filepath.IsAbs(path) {
		return filepath.Clean(path)
	}
	return filepath.Join(c.options.WorkingDirectory, path)
}

// place is where a file is named.
type place struct {
	file string
	line int
	what string
}

func (p place) String() string {
	switch {
	case p.file == "":
		return ""
	case p.line == 0:
		return p.file + ", " + p.what
	}
	return fmt.Sprintf("%s:%d, %s", p.file, p.line, p.what)
}

// add reads a file, unless it has been read, and returns the path under which it is sent.
func (c *collector) add(file string, from place) (string, error) {
	path, err := filepath.Rel(c.root, file)
	if err != nil {
		return "", &Error{What: fmt.Sprintf("file %s is not reachable from %s", file, c.root), Cause: err.Error()}
	}
	path = filepath.ToSlash(path)
	if slices.ContainsFunc(c.out.Files, func(f *coordinatorv1.StackFile) bool { return f.Path == path }) {
		return path, nil
	}
	info, err := os.Stat(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", &Error{What: "there is no file " + file, Cause: named(from), Hint: "create it, or correct its name there"}
	case err != nil:
		return "", &Error{What: "file " + file + " cannot be read", Cause: join(plain(err), named(from))}
	case info.IsDir():
		return "", &Error{What: file + " is a folder, not a file", Cause: named(from)}
	case !info.Mode().IsRegular():
		return "", &Error{What: file + " is not a regular file", Cause: named(from)}
	}
	if err := c.weigh(path, info.Size()); err != nil {
		return "", err
	}
	content, err := os.ReadFile(file)
	if err != nil {
		return "", &Error{What: "file " + file + " cannot be read", Cause: join(plain(err), named(from))}
	}
	c.out.Files = append(c.out.Files, &coordinatorv1.StackFile{Path: path, Content: content})
	return path, nil
}

func (c *collector) weigh(path string, size int64) error {
	c.size += size
	if size > c.most {
		c.most, c.largest = size, path
	}
	if c.size <= Limit {
		return nil
	}
	return &Error{
		What:  fmt.Sprintf("the files of the stack have %d bytes so far, more than the limit of %d (1 MiB)", c.size, Limit),
		Cause: fmt.Sprintf("the largest is %s with %d bytes; nothing was sent", c.largest, c.most),
		Hint:  "mount large files from the hosts, or put them into an image",
	}
}

func (c *collector) content(path string) string {
	for _, f := range c.out.Files {
		if f.Path == path {
			return string(f.Content)
		}
	}
	return ""
}

// profiles takes over COMPOSE_PROFILES unless profiles were given.
func (c *collector) profiles() {
	c.out.Profiles = c.options.Profiles
	if list, ok := c.lookup("COMPOSE_PROFILES"); ok && len(c.out.Profiles) == 0 {
		for p := range strings.SplitSeq(list, ",") {
			if p = strings.TrimSpace(p); p != "" {
				c.out.Profiles = append(c.out.Profiles, p)
			}
		}
	}
}

// active tells whether a service with these profiles is part of the stack.
func (c *collector) active(profiles []string) bool {
	return len(profiles) == 0 || slices.Contains(c.out.Profiles, "*") || slices.ContainsFunc(profiles, func(p string) bool {
		return slices.Contains(c.out.Profiles, p)
	})
}

// name settles the stack's name. The file's own stays empty here: the coordinator reads it, variables included.
func (c *collector) name() {
	c.out.Name = c.options.Name
	if c.out.Name == "" {
		c.out.Name, _ = c.lookup("COMPOSE_PROJECT_NAME")
	}
	if c.out.Name == "" && !c.named {
		c.out.Name = normalize(filepath.Base(c.root))
	}
}

// normalize makes a folder's name a stack's name, as compose does.
func normalize(name string) string {
	var b strings.Builder
	for _, r := range strings.ToLower(name) {
		if (r >= 'a' && r <= 'z') || (r >= '0' && r <= '9') || (b.Len() > 0 && (r == '-' || r == '_')) {
			b.WriteRune(r)
		}
	}
	return b.String()
}

// environment sends the variables that the files name and the process has.
func (c *collector) environment() {
	c.out.Environment = map[string]string{}
	for name := range c.wanted {
		if v, ok := c.options.Env(name); ok {
			c.out.Environment[name] = v
		} else if v, ok := c.given[name]; ok {
			c.out.Environment[name] = v
		}
	}
}

// lookup returns a variable as the compose files see it: the process before the files.
func (c *collector) lookup(name string) (string, bool) {
	if v, ok := c.options.Env(name); ok {
		return v, true
	}
	if v, ok := c.given[name]; ok {
		return v, true
	}
	v, ok := c.dotenv[name]
	return v, ok
}

func (c *collector) want(text string) {
	for _, name := range variables(text) {
		c.wanted[name] = true
	}
}

func parse(content string) (*yaml.Node, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal([]byte(content), &doc); err != nil {
		return nil, err
	}
	if len(doc.Content) == 0 {
		return &yaml.Node{Kind: yaml.MappingNode}, nil
	}
	return doc.Content[0], nil
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

func named(from place) string {
	if s := from.String(); s != "" {
		return "it is named in " + s
	}
	return ""
}

func join(parts ...string) string {
	return strings.Join(slices.DeleteFunc(parts, func(s string) bool { return s == "" }), "; ")
}

func plain(err error) string {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err.Error()
	}
	return err.Error()
}
