package stack

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/compose-spec/compose-go/v2/dotenv"

	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// Limits of what a client may send. A stack is text that people write; what is larger is a mistake or an attack.
const (
	maxSourceBytes      = 1 << 20
	maxEnvironmentBytes = 256 << 10
	maxSourceFiles      = 512
	maxPathBytes        = 1024
)

// noProject stands for the project directory when the client names none. It is deep, so that "../" stays visible below it.
const noProject = "/.no-project-directory/0/1/2/3/4/5/6/7"

// source is what a stack is loaded from: the files that the client sent, by the paths that they have on the hosts. compose-go reads files
// by name, so those that it needs are laid out below a private directory in which every path of a host has its place; nothing else of
// this machine's disk is ever opened.
type source struct {
	// project directory on the hosts, absolute and clean.
	project string
	// files by their absolute path on the hosts.
	files map[string][]byte
	// env for interpolation: what the client sent, over the .env file.
	env map[string]string
	// root is the private directory that stands for "/" of the hosts. Empty until it is needed.
	root string
	// private is what is removed in the end: root is deep below it, so that no "../" leaves it unnoticed.
	private string
	// unset variables that were interpolated.
	unset map[string]bool
}

// newSource checks what the client sent.
func newSource(src *coordinatorv1.StackSource) (*source, error) {
	s := &source{project: noProject, files: map[string][]byte{}, unset: map[string]bool{}}
	if err := checkSize(src); err != nil {
		return nil, err
	}
	if dir := src.GetProjectDirectory(); dir != "" {
		if !path.IsAbs(dir) || len(dir) > maxPathBytes || strings.ContainsRune(dir, 0) {
			return nil, fmt.Errorf("project directory %q is not an absolute path on the hosts", cut(dir))
		}
		s.project = path.Clean(dir)
	}
	for _, f := range src.GetFiles() {
		p, err := s.hostPath(s.project, f.GetPath())
		if err != nil {
			return nil, err
		}
		if _, twice := s.files[p]; twice {
			return nil, fmt.Errorf("file %s was sent twice", s.show(p))
		}
		s.files[p] = f.GetContent()
	}
	env, err := s.dotenv(s.project, src.GetEnvironment())
	if err != nil {
		return nil, err
	}
	s.env = env
	return s, nil
}

// checkSize refuses what is too large before anything is parsed.
func checkSize(src *coordinatorv1.StackSource) error {
	files := src.GetFiles()
	variables := 0
	for name, value := range src.GetEnvironment() {
		variables += len(name) + len(value)
	}
	if variables > maxEnvironmentBytes {
		return fmt.Errorf("the variables are %s together, and %s is the limit", formatBytes(int64(variables)), formatBytes(maxEnvironmentBytes))
	}
	total := 0
	var largest *coordinatorv1.StackFile
	for _, f := range files {
		total += len(f.GetContent())
		if largest == nil || len(f.GetContent()) > len(largest.GetContent()) {
			largest = f
		}
	}
	if total > maxSourceBytes {
		return fmt.Errorf("the files of the stack are %s together, and %s is the limit: the largest is %s with %s; put data into a volume or an image",
			formatBytes(int64(total)), formatBytes(maxSourceBytes), cut(largest.GetPath()), formatBytes(int64(len(largest.GetContent()))))
	}
	if len(files) > maxSourceFiles {
		return fmt.Errorf("%d files were sent, and %d is the limit", len(files), maxSourceFiles)
	}
	return nil
}

// hostPath resolves a path that the client or a file names, relative to base, to its place on the hosts.
func (s *source) hostPath(base, name string) (string, error) {
	switch {
	case name == "" || !utf8.ValidString(name) || strings.ContainsRune(name, 0) || len(name) > maxPathBytes:
		return "", fmt.Errorf("%q is not a path of a file", cut(name))
	case path.IsAbs(name):
		return "", fmt.Errorf("path %s is absolute: files of a stack come from the client, by their paths relative to the project directory", cut(name))
	case strings.HasPrefix(name, "~"):
		return "", fmt.Errorf("path %s: ~ means something else on every machine: write the path relative to the project directory", cut(name))
	case strings.Contains(name, "://") || strings.HasPrefix(name, "git@"):
		return "", fmt.Errorf("%s is remote, and Muster fetches nothing: keep a copy beside the compose file", cut(name))
	}
	p := path.Join(base, name)
	for segment := range strings.SplitSeq(p, "/") {
		if len(segment) > 255 {
			return "", fmt.Errorf("%q is not a path of a file: a name is longer than 255 bytes", cut(name))
		}
	}
	return p, nil
}

// dotenv returns the variables for interpolation in files of a directory: the given ones over those of its .env file.
func (s *source) dotenv(dir string, given map[string]string) (map[string]string, error) {
	env := maps.Clone(given)
	if env == nil {
		env = map[string]string{}
	}
	content, ok := s.files[path.Join(dir, ".env")]
	if !ok {
		return env, nil
	}
	if err := checkVariables(s.show(path.Join(dir, ".env")), content, sizesOf(given)); err != nil {
		return nil, err
	}
	fromFile, err := dotenv.ParseWithLookup(bytes.NewReader(content), func(name string) (string, bool) {
		v, ok := given[name]
		return v, ok
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s.show(path.Join(dir, ".env")), err)
	}
	for name, value := range fromFile {
		if _, ok := env[name]; !ok {
			env[name] = value
		}
	}
	return env, nil
}

// open makes the private directory.
func (s *source) open() error {
	private, err := os.MkdirTemp("", "muster-stack-")
	if err != nil {
		return fmt.Errorf("make a private directory for the stack's files: %w", err)
	}
	s.private = private
	s.root = filepath.Join(private, "0/1/2/3/4/5/6/7/8/9/root")
	return os.MkdirAll(s.local(s.project), 0o700)
}

// close removes the private directory and all in it.
func (s *source) close() error {
	if s.private == "" {
		return nil
	}
	return os.RemoveAll(s.private)
}

// local is the place of a host's path in the private directory.
func (s *source) local(hostPath string) string { return filepath.Join(s.root, hostPath) }

// write lays out one of the sent files.
func (s *source) write(hostPath string, content []byte) error {
	name := s.local(hostPath)
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return err
	}
	return os.WriteFile(name, content, 0o600)
}

// global turns a path in the private directory back into the host's; false for any other text.
func (s *source) global(text string) (string, bool) {
	if text == s.root {
		return "/", true
	}
	if rest, ok := strings.CutPrefix(text, s.root+"/"); ok {
		return "/" + rest, true
	}
	// More "../" than the project directory has parents ends at the host's "/", as it would there.
	rest, ok := strings.CutPrefix(text, s.private+"/")
	if !ok {
		return text, false
	}
	for pad := range strings.SplitSeq("0/1/2/3/4/5/6/7/8/9", "/") {
		rest = strings.TrimPrefix(rest, pad+"/")
	}
	return "/" + rest, true
}

// clean takes the private directory out of a message.
func (s *source) clean(message string) string {
	if s.root == "" {
		return message
	}
	message = strings.ReplaceAll(message, s.local(s.project)+"/", "")
	message = strings.ReplaceAll(message, s.local(s.project), ".")
	return strings.ReplaceAll(message, s.root, "")
}

// show writes a host's path as a person would in the project directory.
func (s *source) show(hostPath string) string {
	rel, err := filepath.Rel(s.project, hostPath)
	if err != nil {
		return hostPath
	}
	return rel
}

// digestOf identifies everything that a stack is made from.
func digestOf(src *coordinatorv1.StackSource) string {
	var b bytes.Buffer
	put := func(parts ...string) {
		fmt.Fprintf(&b, "%d;", len(parts))
		for _, p := range parts {
			fmt.Fprintf(&b, "%d:%s", len(p), p)
		}
	}
	put(src.GetName(), src.GetProjectDirectory())
	put(src.GetComposeFiles()...)
	put(slices.Sorted(slices.Values(src.GetProfiles()))...)
	for _, name := range slices.Sorted(maps.Keys(src.GetEnvironment())) {
		put(name, src.GetEnvironment()[name])
	}
	files := slices.Clone(src.GetFiles())
	slices.SortStableFunc(files, func(a, b *coordinatorv1.StackFile) int { return strings.Compare(a.GetPath(), b.GetPath()) })
	for _, f := range files {
		put(f.GetPath(), string(f.GetContent()))
	}
	return digest(b.Bytes())
}

// cut shortens a text from outside for a message.
func cut(text string) string {
	const limit = 100
	if len(text) <= limit {
		return strings.ToValidUTF8(text, "?")
	}
	return strings.ToValidUTF8(text[:limit], "?") + "…"
}
