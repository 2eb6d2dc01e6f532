// A small pool of workers that sleep on a condition variable, after looking for more work for at most 50 microseconds.
//
// Why not OpenMP: its threads spin between regions, which on a shared machine turned a .013 ms call into 11-16 ms, and a
// process that forks after using it hangs. Here a fork is seen by its process id and gets a fresh pool.
#pragma once

#include <cstdint>
#include <functional>

namespace worldr1 {

// Calls task(index, worker) for index in [0, num_tasks), worker in [0, num_threads), and returns when all are done. The
// caller works too, as worker 0. Runs on the caller alone when num_threads <= 1 or when the pool is busy with another call.
// The first exception of a task is rethrown here, after the others have finished.
void parallel_for(int64_t num_tasks, int num_threads, const std::function<void(int64_t, int)>& task);

}  // namespace worldr1
