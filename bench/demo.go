// The write-up's demo in its own language: a buffered channel and goroutines, each of which takes a
// message, sleeps until it is due (time.Sleep) and sends it. The send records when it began.
//
// demo KIND MESSAGES RATE WORKERS PATIENCE, see foreign.py for what goes in and out.
package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"io"
	"math"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const bodyBytes, chunk = 500, 256

type message struct {
	due     time.Time
	payload []byte
}

var origin time.Time
var begun []float64 // by number, in seconds from the origin
var early int64

func body(number int) []byte {
	payload := make([]byte, bodyBytes)
	binary.BigEndian.PutUint64(payload, uint64(number))
	return payload
}

func send(m message) {
	now := time.Now()
	begun[binary.BigEndian.Uint64(m.payload)] = now.Sub(origin).Seconds()
	if now.Before(m.due) {
		atomic.AddInt64(&early, 1)
	}
}

func start(queue chan message, workers int) *sync.WaitGroup {
	var pool sync.WaitGroup
	for i := 0; i < workers; i++ {
		pool.Add(1)
		go func() {
			defer pool.Done()
			for m := range queue {
				time.Sleep(time.Until(m.due))
				send(m)
			}
		}()
	}
	return &pool
}

// Waits until everything is sent, or until the instant when that is given up.
func finish(queue chan message, pool *sync.WaitGroup, until time.Time) {
	close(queue)
	done := make(chan struct{})
	go func() { pool.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(time.Until(until)):
	}
}

// Message i is put at start + i / rate, in runs whose times are kept: the same rules as those of the others.
func offer(queue chan message, delays []float64, rate float64, began time.Time) (runs []float64) {
	for done := 0; done < len(delays); {
		elapsed := time.Since(began).Seconds()
		due := int(elapsed*rate+1e-3) + 1
		if due > len(delays) {
			due = len(delays)
		}
		stop := due
		if stop > done+chunk {
			stop = done + chunk
		}
		for i := done; i < stop; i++ {
			queue <- message{time.Now().Add(seconds(delays[i])), body(i)}
		}
		if stop > done {
			runs = append(runs, float64(stop), elapsed, time.Since(began).Seconds())
		}
		done = stop
		if stop < due {
			runtime.Gosched()
		} else {
			time.Sleep(time.Until(began.Add(seconds(float64(stop) / rate))))
		}
	}
	return runs
}

func seconds(s float64) time.Duration { return time.Duration(s * 1e9) }

func cpu() float64 {
	var use syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &use)
	return float64(use.Utime.Nano()+use.Stime.Nano()) / 1e9
}

func resident() float64 {
	statm, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return -1
	}
	pages, _ := strconv.ParseFloat(strings.Fields(string(statm))[1], 64)
	return pages * float64(os.Getpagesize())
}

// What comes in: the messages' delays, in seconds.
func readDelays() (delays []float64, longest float64) {
	input, _ := io.ReadAll(os.Stdin)
	delays = make([]float64, len(input)/8)
	binary.Read(bytes.NewReader(input), binary.LittleEndian, delays)
	for _, delay := range delays {
		longest = math.Max(longest, delay)
	}
	return delays, longest
}

func main() {
	number := func(i int) float64 { value, _ := strconv.ParseFloat(os.Args[i], 64); return value }
	kind, messages, rate, workers, patience := os.Args[1], int(number(2)), number(3), int(number(4)), number(5)
	delays, longest := readDelays()
	begun = make([]float64, messages)
	for i := range begun {
		begun[i] = math.NaN()
	}
	bodies := make([][]byte, 0, messages)
	if kind == "put" {
		for i := 0; i < messages; i++ {
			bodies = append(bodies, body(i))
		}
	}
	runtime.GC()
	before, used := resident(), cpu()
	queue := make(chan message, messages)
	pool := start(queue, workers)
	began := time.Now()
	origin = began
	var runs []float64
	figure := 0.0
	switch kind {
	case "open":
		until := began.Add(seconds(float64(messages)/rate + longest + patience))
		runs = offer(queue, delays, rate, began)
		finish(queue, pool, until)
	case "burst":
		due := began.Add(time.Second)
		for i := 0; i < messages; i++ {
			queue <- message{due, body(i)}
		}
		finish(queue, pool, due.Add(time.Minute))
		figure = due.Sub(began).Seconds()
	case "put":
		used = cpu()
		for _, payload := range bodies {
			queue <- message{time.Now().Add(time.Hour), payload}
		}
		figure = cpu() - used
	case "memory":
		for i := 0; i < messages; i++ {
			queue <- message{time.Now().Add(time.Hour), body(i)}
		}
		runtime.GC()
		figure = resident() - before
	}
	wall, used := time.Since(began).Seconds(), cpu()-used
	header := []float64{figure, used, wall, float64(atomic.LoadInt64(&early))}
	out := bufio.NewWriter(os.Stdout)
	defer out.Flush()
	for _, part := range [][]float64{header, begun, runs} {
		binary.Write(out, binary.LittleEndian, part)
	}
}
