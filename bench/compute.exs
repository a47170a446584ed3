defmodule Bench.Compute do
  @moduledoc false
  # Functions that compute, and that do little but access memory.

  # `walk` follows a chain of 65,536 links that jumps about in a mebibyte; `sum` adds what is in
  # it; `copy` copies it in memory by 8 bytes at a time.
  @guest """
  (module
    (memory (export "memory") 33)
    (func (export "id") (param i32) (result i32) (local.get 0))
    (func $fib (export "fib") (param i32) (result i32)
      (if (result i32) (i32.lt_u (local.get 0) (i32.const 2))
        (then (local.get 0))
        (else
          (i32.add
            (call $fib (i32.sub (local.get 0) (i32.const 1)))
            (call $fib (i32.sub (local.get 0) (i32.const 2)))))))
    (func (export "sieve") (param $limit i32) (result i32)
      (local $n i32) (local $m i32) (local $count i32)
      (memory.fill (i32.const 0) (i32.const 1) (local.get $limit))
      (local.set $n (i32.const 2))
      (loop $next
        (if (i32.load8_u (local.get $n))
          (then
            (local.set $count (i32.add (local.get $count) (i32.const 1)))
            (local.set $m (i32.mul (local.get $n) (i32.const 2)))
            (block $done
              (loop $cross
                (br_if $done (i32.ge_u (local.get $m) (local.get $limit)))
                (i32.store8 (local.get $m) (i32.const 0))
                (local.set $m (i32.add (local.get $m) (local.get $n)))
                (br $cross)))))
        (local.set $n (i32.add (local.get $n) (i32.const 1)))
        (br_if $next (i32.lt_u (local.get $n) (local.get $limit))))
      (local.get $count))
    (func (export "walk") (param $steps i32) (result i32) (local $at i32)
      (loop $next
        (i32.store (local.get $at)
          (i32.add (i32.load (local.get $at)) (i32.const 1)))
        (local.set $at
          (i32.and
            (i32.add (i32.mul (local.get $at) (i32.const 5)) (i32.const 4099))
            (i32.const 0xffffc)))
        (br_if $next
          (local.tee $steps (i32.sub (local.get $steps) (i32.const 1)))))
      (local.get $at))
    (func (export "sum") (param $bytes i32) (result i32) (local $sum i32)
      (loop $next
        (local.set $bytes (i32.sub (local.get $bytes) (i32.const 4)))
        (local.set $sum (i32.add (local.get $sum) (i32.load (local.get $bytes))))
        (br_if $next (local.get $bytes)))
      (local.get $sum))
    (func (export "copy") (param $bytes i32) (result i32)
      (loop $next
        (local.set $bytes (i32.sub (local.get $bytes) (i32.const 8)))
        (i64.store offset=1048576 (local.get $bytes) (i64.load (local.get $bytes)))
        (br_if $next (local.get $bytes)))
      (i32.const 0)))
  """

  def guest, do: @guest
end
