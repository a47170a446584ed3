defmodule Beamr.RealGuest do
  @moduledoc false
  # Programs that others wrote, which test/guests/fetch gets: not committed, and not always there.

  @folder Path.expand("../../tmp/guests", __DIR__)
  @names ~w(llhttp quickjs sqlite xxhash)

  @doc "Those that are not there."
  def missing, do: Enum.reject(@names, &File.exists?(path(&1)))

  @doc "Where a guest is."
  def path(name) when name in @names, do: Path.join(@folder, name <> ".wasm")

  @doc "A guest, compiled."
  def module!(name) do
    if name in missing(), do: raise("#{path(name)} is missing: test/guests/fetch gets it")
    Beamr.compile!(File.read!(path(name)))
  end
end
