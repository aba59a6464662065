package source

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"go.yaml.in/yaml/v3"
)

// compose walks a compose file that has been added. Its relative references start at base. If only is given, nothing but that
// service is looked at: who extends a service does not need the files of its neighbours.
func (c *collector) compose(file, base, only string, depth int) error {
	path, err := filepath.Rel(c.root, file)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	path = filepath.ToSlash(path)
	key := path + "\x00" + only
	if c.walked[key] || c.walked[path+"\x00"] {
		return nil
	}
	c.walked[key] = true
	if depth > maxDepth {
		return &Error{What: fmt.Sprintf("files include or extend one another more than %d deep", maxDepth), Cause: "the last is " + path}
	}
	doc, err := parse(c.content(path))
	if err != nil {
		return &Error{What: "file " + file + " is not valid YAML", Cause: strings.TrimPrefix(err.Error(), "yaml: ")}
	}
	if doc.Kind != yaml.MappingNode {
		return &Error{What: "file " + file + " is not a compose file", Cause: "it does not consist of keys and values"}
	}
	w := &walker{c: c, path: path, base: base, depth: depth}
	if only != "" {
		service := lookup(lookup(doc, "services"), only)
		if service == nil {
			return nil // the coordinator says that there is no such service.
		}
		c.scan(service)
		return w.service(only, service)
	}
	c.scan(doc)
	for key, value := range entries(doc) {
		switch key.Value {
		case "name":
			c.named = c.named || (depth == 0 && value.Value != "")
		case "services":
			err = errors.Join(err, each(value, w.service))
		case "configs", "secrets":
			err = errors.Join(err, each(value, func(name string, n *yaml.Node) error { return w.content(key.Value, name, n) }))
		case "include":
			err = errors.Join(err, w.includes(value))
		}
	}
	return first(err)
}

// first returns the first of joined errors: the others often follow from it.
func first(err error) error {
	var many interface{ Unwrap() []error }
	if errors.As(err, &many) {
		return first(many.Unwrap()[0])
	}
	return err
}

// scan notes the variables of every value. Keys are not interpolated.
func (c *collector) scan(n *yaml.Node) {
	switch n.Kind {
	case yaml.ScalarNode:
		c.want(n.Value)
	case yaml.MappingNode:
		for i := 1; i < len(n.Content); i += 2 {
			c.scan(n.Content[i])
		}
	case yaml.DocumentNode, yaml.SequenceNode:
		for _, child := range n.Content {
			c.scan(child)
		}
	}
}

// walker follows the references of one file.
type walker struct {
	c     *collector
	path  string
	base  string
	depth int
}

func (w *walker) at(n *yaml.Node, format string, args ...any) place {
	return place{file: w.path, line: n.Line, what: fmt.Sprintf(format, args...)}
}

// resolve returns the absolute name of a file that is named in this one.
func (w *walker) resolve(name string) string {
	name = interpolate(name, w.c.lookup)
	if rest, ok := strings.CutPrefix(name, "~/"); ok {
		if home, ok := w.c.options.Env("HOME"); ok {
			return filepath.Join(home, rest)
		}
	}
	if filepath.IsAbs(name) {
		return filepath.Clean(name)
	}
	return filepath.Join(w.base, name)
}

func (w *walker) service(name string, n *yaml.Node) error {
	active := w.c.active(list(lookup(n, "profiles")))
	for key, value := range entries(n) {
		at := w.at(value, "services.%s.%s", name, key.Value)
		var err error
		switch key.Value {
		case "env_file", "label_file":
			err = w.files(value, at, active, key.Value == "env_file")
		case "extends":
			err = w.extends(value, at)
		case "environment":
			w.passed(value)
		case "build":
			if args := lookup(value, "args"); args != nil {
				w.passed(args)
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// passed notes the variables that are handed on from the environment by name alone.
func (w *walker) passed(n *yaml.Node) {
	n = follow(n)
	if n.Kind == yaml.SequenceNode {
		for _, item := range n.Content {
			if item = follow(item); item.Kind == yaml.ScalarNode && !strings.Contains(item.Value, "=") {
				w.c.wanted[item.Value] = true
			}
		}
		return
	}
	for key, value := range entries(n) {
		if value.Tag == "!!null" {
			w.c.wanted[key.Value] = true
		}
	}
}

// files adds what a string, or a list of strings and of {path, required}, names. Files that are not needed may be missing.
func (w *walker) files(n *yaml.Node, at place, needed, variables bool) error {
	n = follow(n)
	items := []*yaml.Node{n}
	if n.Kind == yaml.SequenceNode {
		items = n.Content
	}
	for _, item := range items {
		item = follow(item)
		name, required := item.Value, needed
		if item.Kind == yaml.MappingNode {
			name = scalar(lookup(item, "path"))
			required = needed && scalar(lookup(item, "required")) != "false"
		}
		if name == "" {
			continue
		}
		file := w.resolve(name)
		if _, err := os.Stat(file); err != nil && !required {
			continue
		}
		at.line = item.Line
		path, err := w.c.add(file, at)
		if err != nil {
			return err
		}
		if variables {
			w.variables(w.c.content(path))
		}
	}
	return nil
}

// variables notes what an env_file uses: $NAME in values, and lines that are a name alone.
func (w *walker) variables(text string) {
	w.c.want(text)
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" && !strings.ContainsAny(line, "=#: ") {
			w.c.wanted[line] = true
		}
	}
}

func (w *walker) extends(n *yaml.Node, at place) error {
	name := scalar(lookup(n, "file"))
	if name == "" {
		return nil
	}
	if err := local(name, at); err != nil {
		return err
	}
	file := w.resolve(name)
	if _, err := w.c.add(file, at); err != nil {
		return err
	}
	return w.c.compose(file, filepath.Dir(file), scalar(lookup(n, "service")), w.depth+1)
}

func (w *walker) content(section, name string, n *yaml.Node) error {
	if variable := scalar(lookup(n, "environment")); variable != "" {
		w.c.wanted[variable] = true
	}
	file := lookup(n, "file")
	if scalar(file) == "" {
		return nil
	}
	_, err := w.c.add(w.resolve(file.Value), w.at(file, "%s.%s.file", section, name))
	return err
}

func (w *walker) includes(n *yaml.Node) error {
	n = follow(n)
	if n.Kind != yaml.SequenceNode {
		return nil // the coordinator says what is wrong.
	}
	for _, item := range n.Content {
		if err := w.include(follow(item)); err != nil {
			return err
		}
	}
	return nil
}

// include adds one entry: a file, or several that are merged, with their own folder and variables.
func (w *walker) include(item *yaml.Node) error {
	at := w.at(item, "include")
	names := []string{item.Value}
	var directory string
	if item.Kind == yaml.MappingNode {
		names = list(lookup(item, "path"))
		directory = scalar(lookup(item, "project_directory"))
	}
	var files []string
	for _, name := range names {
		if name == "" {
			continue
		}
		if err := local(name, at); err != nil {
			return err
		}
		file := w.resolve(name)
		if _, err := w.c.add(file, at); err != nil {
			return err
		}
		files = append(files, file)
	}
	if len(files) == 0 {
		return nil
	}
	base := filepath.Dir(files[0])
	if directory != "" {
		base = w.resolve(directory)
	}
	if err := w.includeEnv(item, base, at); err != nil {
		return err
	}
	for _, file := range files {
		if err := w.c.compose(file, base, "", w.depth+1); err != nil {
			return err
		}
	}
	return nil
}

// includeEnv adds the files of variables of an included file: those it names, or the .env beside it.
func (w *walker) includeEnv(item *yaml.Node, base string, at place) error {
	var files []string
	if item.Kind == yaml.MappingNode {
		for _, name := range list(lookup(item, "env_file")) {
			files = append(files, w.resolve(name))
		}
	}
	if file := filepath.Join(base, ".env"); len(files) == 0 && isFile(file) {
		files = []string{file}
	}
	for _, file := range files {
		path, err := w.c.add(file, at)
		if err != nil {
			return err
		}
		w.c.want(w.c.content(path))
	}
	return nil
}

// local refuses what is fetched from elsewhere: the plan must not depend on what a server says at that moment.
func local(name string, at place) error {
	for _, prefix := range []string{"https://", "http://", "git@", "git://", "ssh://", "oci://", "github.com/"} {
		if strings.HasPrefix(name, prefix) {
			return &Error{What: fmt.Sprintf("%s is not a local file", name), Cause: named(at), Hint: "fetch it, and name the local copy"}
		}
	}
	return nil
}

func isFile(path string) bool {
	info, err := os.Stat(path)
	return err == nil && !info.IsDir()
}
