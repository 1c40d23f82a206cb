// Threads: the OpenMP runtime that torch has loaded is handed in as a function pointer (GOMP_parallel, which both GCC's
// and LLVM's runtimes export), so that the process never holds a second one and torch's own workers are reused. Without
// it, and in a forked child, where such a runtime cannot be used, plain threads are started for the call.
#pragma once
#include <pthread.h>
#include <stdlib.h>

#include <atomic>

typedef void (*Launch)(void (*)(void*), void*, unsigned, unsigned);

struct Threads {
  int count;
  Launch launch;  // may be null
};

// Memory of the calling thread that is kept from call to call; freed when the thread ends.
class Scratch {
 public:
  // `bytes` bytes aligned to a cache line, valid until the next call on this thread; null when there is no memory.
  static void* get(size_t bytes) {
    pthread_once(&once(), [] { pthread_key_create(&key(), free); });
    Header* held = (Header*)pthread_getspecific(key());
    if (!held || held->bytes < bytes) {
      free(held);
      void* fresh = nullptr;
      if (posix_memalign(&fresh, 64, bytes + bytes / 4 + sizeof(Header))) fresh = nullptr;
      pthread_setspecific(key(), fresh);
      if (!fresh) return nullptr;
      held = (Header*)fresh;
      held->bytes = bytes + bytes / 4;
    }
    return held + 1;
  }

 private:
  struct alignas(64) Header {
    size_t bytes;
  };
  static pthread_once_t& once() {
    static pthread_once_t value = PTHREAD_ONCE_INIT;
    return value;
  }
  static pthread_key_t& key() {
    static pthread_key_t value;
    return value;
  }
};

// Hands out parts of one piece of scratch memory, each aligned to a cache line.
class Carver {
 public:
  template <class T>
  size_t reserve(size_t count) {
    size_t at = bytes_;
    bytes_ += (count * sizeof(T) + 63) / 64 * 64;
    return at;
  }
  bool open() { return (base_ = (char*)Scratch::get(bytes_)) != nullptr; }
  template <class T>
  T* at(size_t place) const {
    return (T*)(base_ + place);
  }

 private:
  size_t bytes_ = 0;
  char* base_ = nullptr;
};

// Calls worker(next) on every thread; next() gives the numbers 0 … tasks − 1, each once over all threads, then −1.
// A worker returns false when it found no memory; so does this then.
template <class Worker>
static bool run_tasks(int64_t tasks, Threads threads, Worker worker) {
  struct Shared {
    std::atomic<int64_t> next;
    std::atomic<bool> failed;
    int64_t tasks;
    Worker* worker;
  } shared = {{0}, {false}, tasks, &worker};
  auto body = [](void* argument) -> void* {
    Shared& s = *(Shared*)argument;
    auto next = [&s]() -> int64_t {
      int64_t task = s.next.fetch_add(1, std::memory_order_relaxed);
      return task < s.tasks ? task : -1;
    };
    if (!(*s.worker)(next)) s.failed = true;
    return nullptr;
  };
  int64_t useful = tasks < threads.count ? tasks : threads.count;
  if (useful <= 1) {
    body(&shared);
  } else if (threads.launch) {
    struct Call {
      void* (*body)(void*);
      void* argument;
    } call = {body, &shared};
    threads.launch([](void* c) { ((Call*)c)->body(((Call*)c)->argument); }, &call, (unsigned)useful, 0);
  } else {
    constexpr int MOST = 256;
    pthread_t started[MOST];
    int count = 0;
    while (count + 1 < useful && count < MOST && !pthread_create(&started[count], nullptr, body, &shared)) count++;
    body(&shared);
    for (int i = 0; i < count; i++) pthread_join(started[i], nullptr);
  }
  return !shared.failed;
}
