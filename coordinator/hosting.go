package coordinator

import "sync"

// hosting counts where a revision's tasks with needs are, or are on their way to:
// the mesh hears of the sandboxes that are made for them a moment later. For who
// wants no other sandbox of the function beside it.
type hosting struct {
	mu sync.Mutex
	at map[string]int // by node
}

func (h *hosting) begin(node string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.at == nil {
		h.at = map[string]int{}
	}
	h.at[node]++
}

func (h *hosting) end(node string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	less(h.at, node)
}

func (h *hosting) there(node string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.at[node] > 0
}
