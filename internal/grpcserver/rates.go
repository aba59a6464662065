package grpcserver

import (
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// maxBuckets bounds the memory that callers, who may be anonymous, can make us use.
const maxBuckets = 8192

// rates counts calls by caller and method.
type rates struct {
	now func() time.Time

	mu      sync.Mutex
	buckets map[bucketKey]*rate.Limiter
	swept   time.Time
}

type bucketKey struct{ method, caller string }

func newRates(now func() time.Time) *rates {
	return &rates{now: now, buckets: make(map[bucketKey]*rate.Limiter)}
}

// take counts a call and returns true, or how long to wait and false. A caller has at once the calls of one minute, and gets them back over a minute.
func (r *rates) take(method, caller string, perMinute uint32) (time.Duration, bool) {
	if perMinute == 0 {
		return 0, true
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	l := r.bucket(bucketKey{method, caller}, perMinute, now)
	if l.AllowN(now, 1) {
		return 0, true
	}
	missing := 1 - l.TokensAt(now)
	wait := time.Duration(missing / float64(l.Limit()) * float64(time.Second))
	return max(wait, time.Second).Round(time.Second), false
}

// bucket returns the caller's bucket. When there are too many, those that are full again are forgotten, which changes nothing for their owners;
// if none is, new callers share one bucket for each method.
func (r *rates) bucket(k bucketKey, perMinute uint32, now time.Time) *rate.Limiter {
	if l, ok := r.buckets[k]; ok {
		return l
	}
	if len(r.buckets) >= maxBuckets && now.Sub(r.swept) >= time.Second {
		r.swept = now
		for key, l := range r.buckets {
			if l.TokensAt(now) >= float64(l.Burst()) {
				delete(r.buckets, key)
			}
		}
	}
	if len(r.buckets) >= maxBuckets {
		k.caller = "" // nobody's name.
		if l, ok := r.buckets[k]; ok {
			return l
		}
	}
	l := rate.NewLimiter(rate.Limit(float64(perMinute)/60), int(perMinute))
	r.buckets[k] = l
	return l
}
