package stack

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/types"
	"google.golang.org/grpc/codes"

	"github.com/spheroseg/muster/internal/rpcerr"
	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// Load reads a stack from the files that a client sent. It opens no other file of this machine and reads no variable of its environment.
//
// Every key of the files is either taken over, or refused, or warned about in Model.Warnings. The error is INVALID_ARGUMENT
// (STACK_INVALID); its message names file, line and key, and what to do.
func Load(ctx context.Context, src *coordinatorv1.StackSource) (*Model, error) {
	model, err := load(ctx, src)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, rpcerr.New(codes.InvalidArgument, coordinatorv1.ErrorReason_ERROR_REASON_STACK_INVALID, "%s", strings.ToValidUTF8(err.Error(), "?"))
	}
	return model, nil
}

// load is Load with plain errors.
func load(ctx context.Context, src *coordinatorv1.StackSource) (*Model, error) {
	p, err := loadProject(ctx, src)
	if err != nil {
		return nil, err
	}
	model, err := p.model()
	if err != nil {
		return nil, err
	}
	model.Digest = digestOf(src)
	return model, nil
}

// project is a stack as compose-go sees it, with what is needed to map it.
type project struct {
	*types.Project

	src *source
	// survey knows where keys stand.
	survey *survey
	// relative paths of the files, by what they are on the hosts: their data is where the project directory is.
	relative map[string]bool
	// warnings that compose would give.
	warnings []string
}

// loadProject makes the same project of the files as docker compose config prints. The private directory is gone when it returns.
func loadProject(ctx context.Context, src *coordinatorv1.StackSource) (_ *project, err error) {
	s, err := newSource(src)
	if err != nil {
		return nil, err
	}
	if len(src.GetComposeFiles()) == 0 {
		return nil, errors.New("no compose file is named")
	}
	var files []string
	for _, name := range src.GetComposeFiles() {
		p, err := s.hostPath(s.project, name)
		if err != nil {
			return nil, err
		}
		files = append(files, p)
	}
	survey, err := look(s, files)
	if err != nil {
		return nil, err
	}
	if err := s.open(); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close()) }()

	p := &project{src: s, survey: survey, relative: map[string]bool{}}
	if err := p.compose(ctx, src, files); err != nil {
		return nil, p.explain(err)
	}
	if err := p.resolveFiles(); err != nil {
		return nil, p.explain(err)
	}
	p.globalize(reflect.ValueOf(p.Project))
	for _, name := range slices.Sorted(maps.Keys(s.unset)) {
		p.warnings = append(p.warnings, fmt.Sprintf("variable %s is not set and counts as empty: set it in .env or in the environment", name))
	}
	return p, nil
}

// compose lets compose-go load the files. It asserts types before it validates them, so that a strange file can make it panic.
func (p *project) compose(ctx context.Context, src *coordinatorv1.StackSource, files []string) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("the compose files cannot be read: a value is of a kind that does not belong there (%v)", r)
		}
	}()
	details := types.ConfigDetails{WorkingDir: p.src.local(p.src.project), Environment: maps.Clone(p.src.env)}
	// Included and extended files are opened by their names; so is the .env file beside an included one.
	for name := range p.survey.documents {
		for _, f := range []string{name, path.Join(path.Dir(name), ".env")} {
			if content, ok := p.src.files[f]; ok {
				if err := p.src.write(f, content); err != nil {
					return err
				}
			}
		}
	}
	for _, f := range files {
		details.ConfigFiles = append(details.ConfigFiles, types.ConfigFile{Filename: p.src.local(f), Content: p.withoutVersion(f)})
	}
	profiles := src.GetProfiles()
	if len(profiles) == 0 {
		profiles = slices.DeleteFunc(strings.Split(p.src.env["COMPOSE_PROFILES"], ","), func(s string) bool { return s == "" })
	}
	options := []func(*loader.Options){
		loader.WithProfiles(profiles),
		loader.WithoutUnnecessaryResources,
		func(o *loader.Options) {
			o.Interpolate.Substitute = p.src.substitute
			o.SkipResolveEnvironment, o.SkipResolveLabels = true, true // they open files: see resolveFiles.
			o.MaxNodeVisits = maxNodes
			p.setName(o, src)
		},
	}
	dict, err := loader.LoadModelWithContext(ctx, details, options...)
	if err != nil {
		return err
	}
	name, _ := dict["name"].(string)
	if err := checkName(name); err != nil {
		return err
	}
	named := takeContainerNames(dict)
	opts := loader.ToOptions(&details, options)
	opts.SetProjectName(name, true)
	if p.Project, err = loader.ModelToProject(dict, opts, details); err != nil {
		return err
	}
	for service, container := range named {
		if s, ok := p.Project.Services[service]; ok {
			s.ContainerName = container
			p.Project.Services[service] = s
		}
	}
	return nil
}

// setName gives the stack the name that compose would give it: what the caller says, then COMPOSE_PROJECT_NAME, then the files, then the
// project directory.
func (p *project) setName(o *loader.Options, src *coordinatorv1.StackSource) {
	switch {
	case src.GetName() != "":
		o.SetProjectName(src.GetName(), true)
	case p.src.env["COMPOSE_PROJECT_NAME"] != "":
		o.SetProjectName(p.src.env["COMPOSE_PROJECT_NAME"], true)
	case p.src.project != noProject:
		o.SetProjectName(loader.NormalizeProjectName(path.Base(p.src.project)), false)
	}
}

// checkName bounds what becomes part of the names of containers and networks.
func checkName(name string) error {
	if name == "" {
		return errors.New("the stack has no name: put name: at the top of the compose file, or give one with --name")
	}
	if len(name) > 63 {
		return fmt.Errorf("the stack's name %s is longer than 63 characters", cut(name))
	}
	return nil
}

// takeContainerNames removes container_name from the services, since compose-go refuses it together with several replicas. Muster names
// containers itself.
func takeContainerNames(dict map[string]any) map[string]string {
	named := map[string]string{}
	for name, value := range mapping(dict["services"]) {
		service := mapping(value)
		if container, ok := service["container_name"].(string); ok {
			named[name] = container
			delete(service, "container_name")
		}
	}
	return named
}

// withoutVersion returns a compose file whose top-level version, obsolete and without meaning, is a comment: compose-go would log about
// it to the standard error of the coordinator. Lines keep their numbers.
func (p *project) withoutVersion(hostPath string) []byte {
	content := p.src.files[hostPath]
	for _, root := range p.survey.documents[hostPath].roots {
		if len(root.Content) == 0 {
			continue
		}
		keys := root.Content[0].Content
		for i := 0; i+1 < len(keys); i += 2 {
			if keys[i].Value != "version" || keys[i].Column != 1 || keys[i+1].Line != keys[i].Line {
				continue
			}
			p.warnings = append(p.warnings, fmt.Sprintf("%s:%d: version is obsolete and is ignored: remove it", p.src.show(hostPath), keys[i].Line))
			lines := strings.Split(string(content), "\n")
			if l := keys[i].Line - 1; l < len(lines) && strings.HasPrefix(lines[l], "version") {
				lines[l] = "#" + lines[l]
				content = []byte(strings.Join(lines, "\n"))
			}
		}
	}
	return content
}

// resolveFiles reads env_file and label_file of the services, after making sure that each of them was sent.
func (p *project) resolveFiles() error {
	for _, name := range slices.Sorted(maps.Keys(p.Project.Services)) {
		s := p.Project.Services[name]
		sizes := p.sizes(s)
		var present []types.EnvFile
		for _, f := range s.EnvFiles {
			hostPath, inside := p.src.global(f.Path)
			content, sent := p.src.files[hostPath]
			switch {
			case inside && sent:
				if err := checkVariables(p.src.show(hostPath), content, sizes); err != nil {
					return err
				}
				if err := p.src.write(hostPath, content); err != nil {
					return err
				}
				present = append(present, f)
			case bool(f.Required):
				return fmt.Errorf("%sservice %s: env_file %s is not among the files that were sent", p.survey.where("services", name, "env_file"), name, p.src.show(hostPath))
			}
		}
		s.EnvFiles = present
		for _, f := range s.LabelFiles {
			hostPath, inside := p.src.global(f)
			content, sent := p.src.files[hostPath]
			if !inside || !sent {
				return fmt.Errorf("%sservice %s: label_file %s is not among the files that were sent", p.survey.where("services", name, "label_file"), name, p.src.show(hostPath))
			}
			if err := errors.Join(checkVariables(p.src.show(hostPath), content, sizes), p.src.write(hostPath, content)); err != nil {
				return err
			}
		}
		if len(s.PreStart) > 0 { // before its own env_file could be opened.
			return fmt.Errorf("%sservice %s: pre_start is not supported: make the hook a service of its own with x-muster: {job: true}, and depend on it with condition: service_completed_successfully",
				p.survey.where("services", name, "pre_start"), name)
		}
		p.Project.Services[name] = s
	}
	resolved, err := p.Project.WithServicesEnvironmentResolved(true)
	if err != nil {
		return err
	}
	p.Project, err = resolved.WithServicesLabelsResolved(false)
	return err
}

// sizes of the variables that an env_file of a service may refer to.
func (p *project) sizes(s types.ServiceConfig) map[string]int {
	sizes := sizesOf(p.src.env)
	for name, value := range s.Environment {
		if value != nil {
			sizes[name] = max(sizes[name], len(*value))
		}
	}
	return sizes
}

// globalize turns the paths of the private directory into those of the hosts, in every text below v.
func (p *project) globalize(v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			p.globalize(v.Elem())
		}
	case reflect.Interface:
		if v.IsNil() || !v.CanSet() {
			return
		}
		copied := reflect.New(v.Elem().Type()).Elem()
		copied.Set(v.Elem())
		p.globalize(copied)
		v.Set(copied)
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				p.globalize(v.Field(i))
			}
		}
	case reflect.Slice:
		for i := range v.Len() {
			p.globalize(v.Index(i))
		}
	case reflect.Map:
		for _, k := range v.MapKeys() {
			copied := reflect.New(v.Type().Elem()).Elem()
			copied.Set(v.MapIndex(k))
			p.globalize(copied)
			v.SetMapIndex(k, copied)
		}
	case reflect.String:
		if hostPath, inside := p.src.global(v.String()); inside && v.CanSet() {
			p.relative[hostPath] = true
			v.SetString(hostPath)
		}
	}
}

// explain turns an error of compose-go into one that names file and line where they can be found.
func (p *project) explain(err error) error {
	text := p.src.clean(err.Error())
	text = strings.TrimSuffix(strings.TrimSuffix(text, ": invalid compose project"), ": invalid project")
	if m := regexp.MustCompile(`(?s)^failed to parse (.+?): (?:yaml: )?(?:.*?)line (\d+)(?:, column \d+)?: (.*)$`).FindStringSubmatch(text); m != nil {
		return fmt.Errorf("%s:%s: %s", m[1], m[2], m[3])
	}
	if m := regexp.MustCompile(`(?s)^validating (.+?): (\S+) (.*)$`).FindStringSubmatch(text); m != nil {
		where := p.survey.where(strings.Split(m[2], ".")...)
		if where == "" {
			where = m[1] + ": "
		}
		return fmt.Errorf("%s%s %s", where, m[2], m[3])
	}
	if m := regexp.MustCompile(`(?:services|networks|volumes|secrets|configs)(?:\.[A-Za-z0-9_-]+)+`).FindString(text); m != "" {
		return fmt.Errorf("%s%s", p.survey.where(strings.Split(m, ".")...), text)
	}
	if m := regexp.MustCompile(`service "?([A-Za-z0-9._-]+)"?`).FindStringSubmatch(text); m != nil {
		return fmt.Errorf("%s%s", p.survey.where("services", m[1]), text)
	}
	return errors.New(text)
}

// rel writes a host's path relative to the project directory, as it stands in the files.
func (p *project) rel(hostPath string) string {
	rel, err := filepath.Rel(p.src.project, hostPath)
	if err != nil || !p.relative[hostPath] {
		return hostPath
	}
	if !strings.HasPrefix(rel, "..") {
		return "./" + rel
	}
	return rel
}
