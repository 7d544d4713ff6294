package node

import "github.com/faasd-sec/faasd-sec/api"

// fairQueue holds those who wait for something scarce: in the order they came
// within a function, and function after function, so that one that starts
// hundreds of sandboxes delays the others by one each round. Its zero value is
// empty. It does no locking.
type fairQueue[T comparable] struct {
	turns []api.FunctionName // that have somebody waiting, the next one first
	lines map[api.FunctionName][]T
	n     int
}

// push puts v at the end of its function's line.
func (q *fairQueue[T]) push(f api.FunctionName, v T) {
	if q.lines == nil {
		q.lines = map[api.FunctionName][]T{}
	}
	if len(q.lines[f]) == 0 {
		q.turns = append(q.turns, f)
	}
	q.lines[f] = append(q.lines[f], v)
	q.n++
}

// pop takes the first of the function whose turn it is.
func (q *fairQueue[T]) pop() (v T, ok bool) {
	if q.n == 0 {
		return v, false
	}
	f := q.turns[0]
	q.turns = q.turns[1:]
	line := q.lines[f]
	v = line[0]
	if len(line) > 1 {
		q.lines[f] = line[1:]
		q.turns = append(q.turns, f)
	} else {
		delete(q.lines, f)
	}
	q.n--
	return v, true
}

// remove takes v out, and reports whether it was still in.
func (q *fairQueue[T]) remove(f api.FunctionName, v T) bool {
	line := q.lines[f]
	for i := range line {
		if line[i] != v {
			continue
		}
		q.n--
		if len(line) > 1 {
			q.lines[f] = append(line[:i:i], line[i+1:]...)
			return true
		}
		delete(q.lines, f)
		for j := range q.turns {
			if q.turns[j] == f {
				q.turns = append(q.turns[:j:j], q.turns[j+1:]...)
				break
			}
		}
		return true
	}
	return false
}

func (q *fairQueue[T]) len() int { return q.n }
