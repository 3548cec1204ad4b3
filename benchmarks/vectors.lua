-- wrk plays the request bodies of a file, one a line, in turn: wrk ... -s vectors.lua URL -- FILE KEY
-- The last line that it prints is a JSON object with the figures.

local requests, last = {}, 0

function init(arguments)
   local headers = { ["Content-Type"] = "application/json", ["X-API-KEY"] = arguments[2] }
   for body in io.lines(arguments[1]) do
      requests[#requests + 1] = wrk.format("POST", nil, headers, body)
   end
end

function request()
   last = last % #requests + 1
   return requests[last]
end

function done(summary, latency)
   local errors = summary.errors
   io.write(string.format(
      '{"requests": %d, "seconds": %f, "p50_ms": %f, "p99_ms": %f, "failed": %d}\n',
      summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
      errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
