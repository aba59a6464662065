package stack

import (
	"fmt"
	"maps"
	"math"
	"path"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/compose-spec/compose-go/v2/types"

	coordinatorv1 "github.com/spheroseg/muster/proto/gen/muster/coordinator/v1"
)

// extensionKey is where a service says what compose has no key for.
const extensionKey = "x-muster"

// extension is x-muster under a service:
//
//	x-muster:
//	  gate:                    # evidence that an instance is ready; exactly one of http, tcp, grpc, exec
//	    http: {port: 3000, path: /health, status: 200, host: app.example.com}
//	    tcp: {port: 6379}
//	    grpc: {port: 50051, service: my.Service}
//	    exec: [pg_isready, -U, app]
//	    interval: 1s           # between probes
//	    timeout: 5s            # of one probe
//	    consecutive: 3         # passes in a row
//	    deadline: 5m           # from the start of the container
//	  route: {hosts: [app.example.com], path_prefix: /api, port: 3000}
//	  drain_limit: 30s         # wait for requests in flight
//	  shared: [./models]       # paths or volumes that are the same on every host, and so pin nothing
//	  job: true                # runs once per release and must exit with 0
//	  reload: SIGUSR1          # what "musterctl service reload" sends; default SIGHUP
//	  on_host_lost: replace    # start instances elsewhere when their host does not answer; default ask
//	  replace_after: 5m        # how long the host must not answer before that
type extension struct {
	Gate       *gateExtension  `key:"gate"`
	Route      *routeExtension `key:"route"`
	DrainLimit period          `key:"drain_limit"`
	Shared     []string        `key:"shared"`
	Job        bool            `key:"job"`
	Reload     string          `key:"reload"`

	OnHostLost   string `key:"on_host_lost"`
	ReplaceAfter period `key:"replace_after"`
}

// gateExtension is x-muster: gate.
type gateExtension struct {
	HTTP        *httpExtension `key:"http"`
	TCP         *tcpExtension  `key:"tcp"`
	GRPC        *grpcExtension `key:"grpc"`
	Exec        []string       `key:"exec"`
	Interval    period         `key:"interval"`
	Timeout     period         `key:"timeout"`
	Consecutive uint32         `key:"consecutive"`
	Deadline    period         `key:"deadline"`
}

// httpExtension is x-muster: gate: http.
type httpExtension struct {
	Port   uint32 `key:"port"`
	Path   string `key:"path"`
	Status uint32 `key:"status"`
	Host   string `key:"host"`
}

// tcpExtension is x-muster: gate: tcp.
type tcpExtension struct {
	Port uint32 `key:"port"`
}

// grpcExtension is x-muster: gate: grpc.
type grpcExtension struct {
	Port    uint32 `key:"port"`
	Service string `key:"service"`
}

// routeExtension is x-muster: route.
type routeExtension struct {
	Hosts      []string `key:"hosts"`
	PathPrefix string   `key:"path_prefix"`
	Port       uint32   `key:"port"`
}

// period is a duration like 30s.
type period time.Duration

// extension reads x-muster of a service.
func (m *mapper) extension(s types.ServiceConfig) extension {
	var ext extension
	value, ok := s.Extensions[extensionKey]
	if !ok || value == nil {
		return ext
	}
	for _, problem := range decodeStrict(value, reflect.ValueOf(&ext).Elem(), nil) {
		m.refuse(s.Name, strings.Join(append([]string{extensionKey}, problem.path...), "."), "%s", problem.text)
	}
	return ext
}

// route maps and checks x-muster: route.
func (m *mapper) route(s types.ServiceConfig, ext extension) *coordinatorv1.ServiceRoute {
	r := ext.Route
	if r == nil {
		return nil
	}
	const key = extensionKey + ".route"
	if r.Port == 0 || r.Port > 65535 {
		m.refuse(s.Name, key+".port", "give the port of the container that serves, 1 to 65535")
	}
	if r.PathPrefix != "" && (!strings.HasPrefix(r.PathPrefix, "/") || strings.ContainsAny(r.PathPrefix, " \t\n*?#")) {
		m.refuse(s.Name, key+".path_prefix", "%s is not a path like /api", cut(r.PathPrefix))
	}
	for _, host := range r.Hosts {
		if host == "" || strings.ContainsAny(host, "/ :\t\n") || path.Clean(host) != host {
			m.refuse(s.Name, key+".hosts", "%q is not a host name like app.example.com", cut(host))
		}
	}
	if s.NetworkMode == "none" {
		m.refuse(s.Name, key, "a service without a network serves nobody")
	}
	return &coordinatorv1.ServiceRoute{Hosts: slices.Sorted(slices.Values(r.Hosts)), PathPrefix: r.PathPrefix, Port: r.Port}
}

// reload maps x-muster: reload.
func (m *mapper) reload(s types.ServiceConfig, ext extension) string {
	if ext.Reload == "" {
		return ""
	}
	signal, err := Signal(ext.Reload)
	if err != nil {
		m.refuse(s.Name, extensionKey+".reload", "%s", err)
	}
	return signal
}

// decodeProblem is one thing that is wrong in x-muster, and where.
type decodeProblem struct {
	path []string
	text string
}

// decodeStrict fills v from a decoded YAML value. Unknown keys and values of the wrong kind are problems; all of them are returned.
func decodeStrict(value any, v reflect.Value, at []string) []decodeProblem {
	wrong := func(format string, args ...any) []decodeProblem {
		return []decodeProblem{{slices.Clone(at), fmt.Sprintf(format, args...)}}
	}
	if v.Type() == reflect.TypeFor[period]() {
		d, err := time.ParseDuration(fmt.Sprint(value))
		if err != nil || d <= 0 {
			return wrong("%v is not a duration like 30s or 1m30s", value)
		}
		v.SetInt(int64(d))
		return nil
	}
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		return decodeStrict(value, v.Elem(), at)
	case reflect.Struct:
		return decodeStruct(value, v, at)
	case reflect.Slice:
		items, ok := value.([]any)
		if _, text := value.(string); text && len(at) > 0 && at[len(at)-1] == "exec" {
			return wrong("give the command as a list, like [pg_isready, -U, app]: there is no shell")
		}
		if !ok {
			items = []any{value}
		}
		for _, item := range items {
			text, ok := item.(string)
			if !ok {
				return wrong("%v is not a text", item)
			}
			v.Set(reflect.Append(v, reflect.ValueOf(text)))
		}
	case reflect.String:
		text, ok := value.(string)
		if !ok {
			return wrong("%v is not a text", value)
		}
		v.SetString(text)
	case reflect.Bool:
		b, err := strconv.ParseBool(fmt.Sprint(value))
		if err != nil {
			return wrong("%v is neither true nor false", value)
		}
		v.SetBool(b)
	case reflect.Uint32:
		n, err := strconv.ParseUint(fmt.Sprint(value), 10, 32)
		if err != nil || n > math.MaxInt32 {
			return wrong("%v is not a number", value)
		}
		v.SetUint(n)
	}
	return nil
}

// decodeStruct fills the fields of a struct by their keys.
func decodeStruct(value any, v reflect.Value, at []string) []decodeProblem {
	m, ok := value.(map[string]any)
	if !ok {
		return []decodeProblem{{slices.Clone(at), "it is not a mapping of keys"}}
	}
	fields := map[string]int{}
	var known []string
	for i := range v.NumField() {
		key := v.Type().Field(i).Tag.Get("key")
		fields[key] = i
		known = append(known, key)
	}
	var out []decodeProblem
	for _, key := range slices.Sorted(maps.Keys(m)) {
		below := append(slices.Clone(at), key)
		i, ok := fields[key]
		switch {
		case !ok && key == "#extensions":
			continue
		case !ok:
			out = append(out, decodeProblem{below, fmt.Sprintf("unknown key%s; there are %s", didYouMean(key, known), strings.Join(known, ", "))})
		case m[key] == nil:
			out = append(out, decodeProblem{below, "it has no value"})
		default:
			out = append(out, decodeStrict(m[key], v.Field(i), below)...)
		}
	}
	return out
}
