package stack

import (
	"fmt"
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/compose-spec/compose-go/v2/interpolation"
	"github.com/compose-spec/compose-go/v2/template"
)

// survey goes through the compose files before compose-go does, in the way compose-go will. It finds the files that will be read, so that
// only sent ones are; it finds unknown keys and where they stand; and it keeps the documents to tell lines of later findings.
type survey struct {
	src *source
	// documents by host path.
	documents map[string]*document
	// order in which they were found.
	order []string
	spec  specKeys
	// seen guards against files that include or extend each other; compose-go reports such cycles.
	seen map[string]bool
	// unknown keys of all documents.
	unknown []string
	// bytes of all documents with aliases and variables put in, and how many services extend others.
	bytes, extending int
}

// look surveys the compose files, by their host paths.
func look(src *source, composeFiles []string) (*survey, error) {
	v := &survey{src: src, documents: map[string]*document{}, spec: newSpecKeys(), seen: map[string]bool{}}
	for _, file := range composeFiles {
		if err := v.file(file, src.project, src.env, true); err != nil {
			return nil, err
		}
	}
	if len(v.unknown) > 0 {
		return nil, problems(v.unknown)
	}
	if v.extending*v.bytes > maxExtendedBytes {
		return nil, fmt.Errorf("%d services extend others, in files of %s: write fewer, or shorter ones", v.extending, formatBytes(int64(v.bytes)))
	}
	return v, nil
}

// file surveys one file. Its relative paths start at base. A file that is only extended includes nothing.
func (v *survey) file(hostPath, base string, env map[string]string, includes bool) error {
	key := fmt.Sprint(hostPath, "\x00", base, "\x00", includes)
	if v.seen[key] {
		return nil
	}
	v.seen[key] = true
	if len(v.seen) > maxSourceFiles {
		return fmt.Errorf("%s: more than %d files include and extend each other", v.src.show(hostPath), maxSourceFiles)
	}
	content, ok := v.src.files[hostPath]
	if !ok {
		return fmt.Errorf("file %s is not among the files that were sent", v.src.show(hostPath))
	}
	d := v.documents[hostPath]
	if d == nil {
		var err error
		if d, err = parseDocument(v.src.show(hostPath), content); err != nil {
			return err
		}
		v.documents[hostPath] = d
		v.order = append(v.order, hostPath)
		v.unknown = append(v.unknown, d.unknownKeys(v.spec)...)
	}
	trees, err := d.values()
	if err != nil {
		return err
	}
	for _, tree := range trees {
		size := expandedSize(tree, env, references(), maxExpandedBytes)
		if v.bytes += size; size > maxExpandedBytes {
			return fmt.Errorf("%s: with aliases and variables put in, the file has more than %s", d.name, formatBytes(maxExpandedBytes))
		}
		// What cannot be interpolated is left out here and reported by compose-go with all its neighbours.
		tree, _ = interpolation.Interpolate(tree, interpolation.Options{LookupValue: lookup(env), Substitute: v.src.substitute})
		if err := v.tree(tree, base, env, includes); err != nil {
			return fmt.Errorf("%s: %w", d.name, err)
		}
	}
	return nil
}

// tree checks the paths in one document, and follows those of compose files.
func (v *survey) tree(tree map[string]any, base string, env map[string]string, includes bool) error {
	if includes {
		for _, item := range list(tree["include"]) {
			if err := v.include(item, base, env); err != nil {
				return fmt.Errorf("include: %w", err)
			}
		}
	}
	for _, section := range []string{"services", "jobs"} {
		services := mapping(tree[section])
		for _, name := range slices.Sorted(maps.Keys(services)) {
			service := mapping(services[name])
			if service["extends"] != nil {
				v.extending++
			}
			if err := v.extends(service, base, env); err != nil {
				return fmt.Errorf("service %s: extends: %w", name, err)
			}
			if where := homePath(service, "volumes", "env_file", "label_file"); where != "" {
				return fmt.Errorf("service %s: %s: ~ means something else on every machine: write the path out", name, where)
			}
			if p := outsideWatch(service); p != "" {
				return fmt.Errorf("service %s: develop: watch: path %s leads out of the project directory", name, cut(p))
			}
		}
	}
	for _, section := range []string{"secrets", "configs"} {
		named := mapping(tree[section])
		for _, name := range slices.Sorted(maps.Keys(named)) {
			if where := homePath(mapping(named[name]), "file"); where != "" {
				return fmt.Errorf("%s %s: %s: ~ means something else on every machine: write the path out", section, name, where)
			}
		}
	}
	volumes := mapping(tree["volumes"])
	for _, name := range slices.Sorted(maps.Keys(volumes)) {
		if where := homePath(mapping(mapping(volumes[name])["driver_opts"]), "device"); where != "" {
			return fmt.Errorf("volume %s: driver_opts: %s: ~ means something else on every machine: write the path out", name, where)
		}
	}
	return nil
}

// include follows one entry of the include section.
func (v *survey) include(item any, base string, env map[string]string) error {
	entry, long := item.(map[string]any)
	if !long {
		entry = map[string]any{"path": item}
	}
	for _, key := range []string{"project_directory", "env_file"} {
		if entry[key] != nil {
			return fmt.Errorf("%s is not supported: paths of an included file start at its own directory, and its variables come from the .env file there", key)
		}
	}
	dir := ""
	for _, p := range texts(entry["path"]) {
		target, err := v.src.hostPath(base, p)
		if err != nil {
			return err
		}
		if dir == "" { // the first file decides where the paths of all of them start.
			dir = path.Dir(target)
			if env, err = v.src.dotenv(dir, env); err != nil {
				return err
			}
		}
		if err := v.file(target, dir, env, true); err != nil {
			return err
		}
	}
	return nil
}

// extends follows the file that a service extends.
func (v *survey) extends(service map[string]any, base string, env map[string]string) error {
	file, ok := mapping(service["extends"])["file"].(string)
	if !ok {
		return nil
	}
	target, err := v.src.hostPath(base, file)
	if err != nil {
		return err
	}
	return v.file(target, path.Dir(target), env, false)
}

// where returns file:line of a key, in the file that has the most of its path; of several, the last one, whose value counts.
func (v *survey) where(path ...string) string {
	best, at := 1, ""
	for _, name := range v.order {
		if position, depth := v.documents[name].position(path); depth >= best {
			best, at = depth, position
		}
	}
	if at == "" {
		return ""
	}
	return at + ": "
}

// homePath returns the first path under the keys that starts with ~.
func homePath(m map[string]any, keys ...string) string {
	for _, key := range keys {
		for _, item := range list(m[key]) {
			text, ok := item.(string)
			if long := mapping(item); !ok {
				text, _ = long["source"].(string)
				if text == "" {
					text, _ = long["path"].(string)
				}
			}
			if strings.HasPrefix(text, "~") {
				return key + ": " + cut(text)
			}
		}
	}
	return ""
}

// outsideWatch returns a path of develop.watch that leads out of the project directory. compose-go follows symbolic links of these paths.
func outsideWatch(service map[string]any) string {
	for _, key := range []string{"develop", "x-develop"} {
		for _, item := range list(mapping(service[key])["watch"]) {
			if p, ok := mapping(item)["path"].(string); ok && !filepath.IsLocal(p) {
				return p
			}
		}
	}
	return ""
}

// substitute is compose's interpolation, which notes unset variables instead of logging them.
func (s *source) substitute(text string, lookup template.Mapping) (string, error) {
	note := func(substring string, lookup template.Mapping, cfg *template.Config) (string, error) {
		value, applied, err := template.DefaultReplacementAppliedFunc(substring, lookup, cfg)
		if err == nil && !applied {
			name := strings.Trim(substring, "${}")
			s.unset[name] = true
		}
		return value, err
	}
	return template.SubstituteWithOptions(text, lookup, template.WithReplacementFunction(note), template.WithoutLogging)
}

// lookup reads variables from a map, and from nowhere else.
func lookup(env map[string]string) interpolation.LookupValue {
	return func(name string) (string, bool) {
		v, ok := env[name]
		return v, ok
	}
}

// mapping returns v if it is one, else an empty one.
func mapping(v any) map[string]any {
	m, _ := v.(map[string]any)
	return m
}

// list returns the items of a list, or a single value as a list of one.
func list(v any) []any {
	switch v := v.(type) {
	case nil:
		return nil
	case []any:
		return v
	}
	return []any{v}
}

// texts returns the strings of a list or of a single value.
func texts(v any) []string {
	var out []string
	for _, item := range list(v) {
		if s, ok := item.(string); ok {
			out = append(out, s)
		}
	}
	return out
}
