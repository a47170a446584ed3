defmodule Beamr.Host.Clean.MemoryRuntime do
  @moduledoc """
  Clean's `memory_runtime`: `mem_alloc`, and the bookkeeping beside it.

  `mem_alloc(size, align)` answers the address of a block that overlaps no other, or 0 where
  memory cannot grow; `Beamr.Host.Clean` says where blocks come from. Some compilers pass a type's
  number and the size instead, so a block has as many bytes as the larger of the two says.

  `mem_retain`, `mem_release`, `mem_scope_push` and `mem_scope_pop` free nothing: programs in use
  hold on to strings beyond the scope they were made in, and the public hosts do the same. An
  instance's memory goes when the instance does.
  """

  use Beamr.Host, module: "memory_runtime", types: Beamr.Host.Clean.Types

  # Larger alignments than this are sizes.
  @largest_align 4096

  @wasm "(i32, i32) -> block"
  def mem_alloc(_wasm, size, align) do
    size = u32(size)
    align = u32(align)
    {max(size, align), if(power_of_two?(align), do: max(align, 8), else: 8)}
  end

  defp power_of_two?(n), do: n in 1..@largest_align and Bitwise.band(n, n - 1) == 0
  defp u32(word), do: Bitwise.band(word, 0xFFFFFFFF)

  @wasm "(i32)"
  def mem_retain(_wasm, _pointer), do: nil

  @wasm "(i32)"
  def mem_release(_wasm, _pointer), do: nil

  @wasm "()"
  def mem_scope_push(_wasm), do: nil

  @wasm "()"
  def mem_scope_pop(_wasm), do: nil
end
